//! The bridge and its ports.

use std::{
    io,
    net::{IpAddr, Ipv4Addr},
    os::fd::OwnedFd,
};

use futures_util::TryStreamExt;
use rtnetlink::{
    Handle, LinkBridge, LinkBridgePort, LinkUnspec, RouteMessageBuilder,
    packet_route::{
        address::AddressAttribute,
        link::InfoBridgePort,
        neighbour::{NeighbourFlags, NeighbourState},
        route::{RouteAddress, RouteAttribute, RouteType},
    },
};
use rustix::net::{AddressFamily, SocketFlags, SocketType, netdevice};

use super::range::Range;
use crate::network::MacAddress;

/// A connection to the kernel's tables of links, addresses and routes.
pub(super) struct Links {
    handle: Handle,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Links {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// An interface that has something of a range, and what.
pub(super) struct InTheWay {
    pub(super) interface: String,
    pub(super) what: String,
}

fn failed(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other),
    }
}

/// The interface of this name.
pub(super) fn index(name: &str) -> io::Result<Option<u32>> {
    match netdevice::name_to_index(socket()?, name) {
        Ok(index) => Ok(Some(index)),
        Err(rustix::io::Errno::NODEV) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn name(index: u32) -> io::Result<String> {
    Ok(netdevice::index_to_name(socket()?, index)?)
}

/// A socket, only to ask by it.
fn socket() -> io::Result<OwnedFd> {
    Ok(rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?)
}

impl Links {
    pub(super) fn open() -> io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        Ok(Self { handle, task: tokio::spawn(connection) })
    }

    /// Makes a bridge, without an address and down. Its MAC address stays, whatever ports it gets.
    pub(super) async fn add_bridge(&self, name: &str, mac: MacAddress) -> io::Result<u32> {
        let bridge = LinkBridge::new(name).address(mac.0.to_vec()).build();
        self.handle.link().add(bridge).execute().await.map_err(failed)?;
        index(name)?.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Gives the bridge the range's first address, and puts it up. Both again: no effect.
    pub(super) async fn start_bridge(&self, bridge: u32, range: Range) -> io::Result<()> {
        let address = IpAddr::V4(range.gateway());
        self.handle
            .address()
            .add(bridge, address, range.prefix())
            .replace()
            .execute()
            .await
            .map_err(failed)?;
        self.up(bridge).await
    }

    /// Makes a device a port of the bridge. The bridge learns nothing from it: it sends to this port what is for this
    /// MAC address and what is for all.
    pub(super) async fn add_port(
        &self,
        bridge: u32,
        port: u32,
        mac: MacAddress,
        isolated: bool,
    ) -> io::Result<()> {
        let link = LinkUnspec::new_with_index(port).controller(bridge).build();
        self.handle.link().set(link).execute().await.map_err(failed)?;
        let link = LinkBridgePort::new(port).learning(false).flood(false).isolated(isolated).build();
        self.handle.link().set_port(link).execute().await.map_err(failed)?;
        self.handle
            .neighbours()
            .add_bridge(port, &mac.0)
            // Static: a permanent entry would make it an address of the bridge itself.
            .state(NeighbourState::Noarp)
            .flags(NeighbourFlags::Controller)
            .replace()
            .execute()
            .await
            .map_err(failed)?;
        self.up(port).await
    }

    /// Whether a port exchanges frames with other isolated ports.
    pub(super) async fn isolate(&self, port: u32, isolated: bool) -> io::Result<()> {
        let link = LinkBridgePort::new(port).append_info_data(InfoBridgePort::Isolated(isolated)).build();
        self.handle.link().set_port(link).execute().await.map_err(failed)
    }

    async fn up(&self, index: u32) -> io::Result<()> {
        let link = LinkUnspec::new_with_index(index).up().build();
        self.handle.link().set(link).execute().await.map_err(failed)
    }

    /// Removes a device. Not there: no effect.
    pub(super) async fn remove(&self, name: &str) -> io::Result<()> {
        let Some(index) = index(name)? else { return Ok(()) };
        match self.handle.link().del(index).execute().await.map_err(failed) {
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
            result => result,
        }
    }

    /// What else uses addresses of a range: an address or a route, other than the default one, that is not `except`'s.
    pub(super) async fn in_the_way(&self, range: Range, except: &str) -> io::Result<Option<InTheWay>> {
        let except = index(except)?;
        let mut addresses = self.handle.address().get().execute();
        while let Some(message) = addresses.try_next().await.map_err(failed)? {
            let owner = message.header.index;
            let prefix = message.header.prefix_len;
            let overlap = message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Address(IpAddr::V4(address)) if range.overlaps(*address, prefix) => {
                    Some(*address)
                }
                _ => None,
            });
            if let Some(address) = overlap.filter(|_| Some(owner) != except) {
                let what = format!("the address {address}/{prefix}");
                return Ok(Some(InTheWay { interface: name(owner)?, what }));
            }
        }
        for route in self.routes().await? {
            if route.prefix > 0
                && Some(route.interface) != except
                && range.overlaps(route.destination, route.prefix)
            {
                let what = format!("a route to {}/{}", route.destination, route.prefix);
                return Ok(Some(InTheWay { interface: name(route.interface)?, what }));
            }
        }
        Ok(None)
    }

    /// The interfaces that default routes lead to.
    pub(super) async fn uplinks(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for route in self.routes().await?.into_iter().filter(|route| route.prefix == 0) {
            names.push(name(route.interface)?);
        }
        names.sort();
        names.dedup();
        Ok(names)
    }

    /// IPv4 routes that lead to an interface.
    async fn routes(&self) -> io::Result<Vec<Route>> {
        let mut routes = Vec::new();
        let mut messages = self.handle.route().get(RouteMessageBuilder::<Ipv4Addr>::new().build()).execute();
        while let Some(message) = messages.try_next().await.map_err(failed)? {
            let (mut destination, mut interface) = (Ipv4Addr::UNSPECIFIED, None);
            for attribute in &message.attributes {
                match attribute {
                    RouteAttribute::Destination(RouteAddress::Inet(address)) => destination = *address,
                    RouteAttribute::Oif(index) => interface = Some(*index),
                    _ => {}
                }
            }
            let prefix = message.header.destination_prefix_length;
            if let Some(interface) = interface.filter(|_| message.header.kind == RouteType::Unicast) {
                routes.push(Route { destination, prefix, interface });
            }
        }
        Ok(routes)
    }
}

struct Route {
    destination: Ipv4Addr,
    prefix: u8,
    interface: u32,
}
