//! Tables, sets and rules of nftables, put in force in one step.

pub(super) mod steps;
mod sys;
pub(super) mod wire;

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::CStr,
    io,
    time::Duration,
};

use nftnl::{Batch, Chain, ChainType, Hook, MsgType, Policy, ProtoFamily, Rule, Table};

pub(super) use sys::Step;
use sys::{ElementsMessage, RawSet, SetMessage};
use wire::{Request, Subsystem, attribute, attributes, find};

/// Elements that one message carries. A message has 64 KiB; an element with its attributes is below 100 bytes.
const ELEMENTS_PER_MESSAGE: usize = 400;

/// Room for an element in a batch, in bytes.
const ELEMENT_BYTES: usize = 128;

/// Room for tables, chains, sets and rules in a batch, in bytes.
const RULES_BYTES: usize = 512 * 1024;

/// How long the kernel may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);

// linux/netfilter/nf_tables.h
const GET_TABLE: u8 = 1;
const GET_SET_ELEMENTS: u8 = 13;
const TABLE_NAME: u16 = 1;
const ELEMENTS_TABLE: u16 = 1;
const ELEMENTS_SET: u16 = 2;
const ELEMENTS_LIST: u16 = 3;
const ELEMENT_KEY: u16 = 1;
const DATA_VALUE: u16 = 1;

/// How a set is told from others: its table's family and its name.
pub(super) type SetName = (Family, &'static CStr);

/// What is in the sets: keys, and for maps their data.
pub(super) type Elements = BTreeMap<SetName, BTreeSet<(Vec<u8>, Vec<u8>)>>;

/// Which packets a table sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Family {
    /// Frames between the ports of a bridge.
    Bridge,
    /// IPv4 and IPv6 packets that the host receives, sends or forwards.
    Inet,
}

impl Family {
    fn proto(self) -> ProtoFamily {
        match self {
            Self::Bridge => ProtoFamily::Bridge,
            Self::Inet => ProtoFamily::Inet,
        }
    }

    fn number(self) -> u16 {
        // The enum's values are the kernel's numbers.
        self.proto() as u16
    }
}

/// A set or a map.
#[derive(Debug)]
pub(super) struct SetPlan {
    pub(super) name: &'static CStr,
    /// What `nft` shows, and bytes.
    pub(super) key: (u32, u32),
    pub(super) data: Option<(u32, u32)>,
}

/// A chain and its rules, each with what it is for.
#[derive(Debug)]
pub(super) struct ChainPlan {
    pub(super) name: &'static CStr,
    pub(super) hook: Option<(ChainType, Hook, i32)>,
    pub(super) rules: Vec<(&'static CStr, Vec<Step>)>,
}

/// A table.
#[derive(Debug)]
pub(super) struct TablePlan {
    pub(super) family: Family,
    pub(super) sets: Vec<SetPlan>,
    pub(super) chains: Vec<ChainPlan>,
}

/// Puts tables in force with these elements, in place of those of the same name. In one step: packets see either the
/// old or the new ones.
pub(super) fn replace(name: &CStr, tables: &[TablePlan], elements: &Elements) -> io::Result<()> {
    let mut batch = batch_for(elements, &Elements::new());
    for plan in tables {
        let table = Table::new(name, plan.family.proto());
        // Added first, so that removing it never fails.
        batch.add(&table, MsgType::Add);
        batch.add(&table, MsgType::Del);
        batch.add(&table, MsgType::Add);
        for (id, set) in (1..).zip(&plan.sets) {
            let raw = RawSet::new(plan.family.number(), name, set.name);
            raw.describe(id, set.key, set.data);
            batch.add(&SetMessage(&raw), MsgType::Add);
        }
        let chains: Vec<Chain<'_>> = plan.chains.iter().map(|chain| made(chain, &table)).collect();
        for chain in &chains {
            batch.add(chain, MsgType::Add);
        }
        for (plan, chain) in plan.chains.iter().zip(&chains) {
            for (purpose, steps) in &plan.rules {
                let mut rule = Rule::new(chain);
                rule.set_comment(purpose).map_err(io::Error::other)?;
                steps.iter().for_each(|step| rule.add_expr(step));
                batch.add(&rule, MsgType::Add);
            }
        }
    }
    add_elements(&mut batch, name, elements, MsgType::Add);
    send(batch).map_err(lacking)
}

/// The kernel refuses rules that need modules which it does not have and cannot load.
fn lacking(error: io::Error) -> io::Error {
    const MODULES: &str = "modprobe -a nft_chain_nat nft_ct nft_fib_inet nft_masq nft_nat nft_reject_inet";
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::EOPNOTSUPP | libc::EAFNOSUPPORT | libc::EPROTONOSUPPORT) => io::Error::new(
            io::ErrorKind::Unsupported,
            format!("this kernel lacks a part of nftables ({error}): load its modules: {MODULES}"),
        ),
        _ => error,
    }
}

fn made<'a>(plan: &ChainPlan, table: &'a Table) -> Chain<'a> {
    let mut chain = Chain::new(plan.name, table);
    if let Some((kind, hook, priority)) = plan.hook {
        chain.set_type(kind);
        chain.set_hook(hook, priority);
        chain.set_policy(Policy::Accept);
    }
    chain
}

/// Changes elements from one state to another, in one step.
///
/// # Errors
/// Also when the sets are not as `before` says, or not there: nothing is changed then.
pub(super) fn change(name: &CStr, before: &Elements, after: &Elements) -> io::Result<()> {
    let (gone, new) = (without(before, after), without(after, before));
    if gone.is_empty() && new.is_empty() {
        return Ok(());
    }
    let mut batch = batch_for(&gone, &new);
    add_elements(&mut batch, name, &gone, MsgType::Del);
    add_elements(&mut batch, name, &new, MsgType::Add);
    send(batch)
}

/// Removes the tables of this name. Those that are not there: no effect.
pub(super) fn remove(name: &CStr) -> io::Result<()> {
    let mut batch = Batch::new();
    for family in [Family::Bridge, Family::Inet] {
        let table = Table::new(name, family.proto());
        batch.add(&table, MsgType::Add);
        batch.add(&table, MsgType::Del);
    }
    send(batch)
}

/// Whether both tables of this name are there.
pub(super) fn is_there(name: &CStr) -> io::Result<bool> {
    for family in [Family::Bridge, Family::Inet] {
        let question =
            Request { content: attribute(TABLE_NAME, name.to_bytes_with_nul()), ..ask(family, GET_TABLE) };
        match question.send() {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(false),
            result => drop(result?),
        }
    }
    Ok(true)
}

/// The keys in the sets of this name, of all tables of the inet family whose names begin so.
pub(super) fn keys(tables: &str, set: &CStr) -> io::Result<Vec<Vec<u8>>> {
    let mut keys = Vec::new();
    for table in (Request { dump: true, ..ask(Family::Inet, GET_TABLE) }).send()? {
        let Some(name) = find(&table, TABLE_NAME).filter(|name| name.starts_with(tables.as_bytes())) else {
            continue;
        };
        let content = [attribute(ELEMENTS_TABLE, name), attribute(ELEMENTS_SET, set.to_bytes_with_nul())];
        let question =
            Request { dump: true, content: content.concat(), ..ask(Family::Inet, GET_SET_ELEMENTS) };
        let lists = match question.send() {
            // The table went meanwhile, or it is another one that happens to be named so.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => continue,
            lists => lists?,
        };
        for list in lists {
            let elements = find(&list, ELEMENTS_LIST).into_iter().flat_map(attributes);
            let key = |(_, element)| find(find(element, ELEMENT_KEY)?, DATA_VALUE);
            keys.extend(elements.filter_map(key).map(<[u8]>::to_vec));
        }
    }
    Ok(keys)
}

fn ask(family: Family, message: u8) -> Request {
    let family = u8::try_from(family.number()).unwrap_or_default();
    Request { subsystem: Subsystem::Rules, message, family, dump: false, content: Vec::new() }
}

/// What one has and the other has not.
fn without(one: &Elements, other: &Elements) -> Elements {
    let none = BTreeSet::new();
    let difference = |(set, elements): (&SetName, &BTreeSet<_>)| {
        let elements = elements.difference(other.get(set).unwrap_or(&none)).cloned().collect();
        (*set, elements)
    };
    one.iter().map(difference).filter(|(_, elements): &(_, BTreeSet<_>)| !elements.is_empty()).collect()
}

/// An empty batch with room for so many elements: one that needs a second page would no longer be one step.
fn batch_for(one: &Elements, other: &Elements) -> Batch {
    let elements: usize = one.values().chain(other.values()).map(BTreeSet::len).sum();
    let bytes = u32::try_from(RULES_BYTES + elements * ELEMENT_BYTES).unwrap_or(u32::MAX / 2);
    Batch::with_page_size(bytes)
}

fn add_elements(batch: &mut Batch, table: &CStr, elements: &Elements, message: MsgType) {
    for ((family, set), elements) in elements {
        let elements: Vec<_> = elements.iter().collect();
        for some in elements.chunks(ELEMENTS_PER_MESSAGE) {
            let raw = RawSet::new(family.number(), table, set);
            for (key, data) in some {
                raw.add(key, data);
            }
            batch.add(&ElementsMessage(&raw), message);
        }
    }
}

/// Sends a batch and waits until the kernel has put it in force or refused it as a whole.
fn send(batch: Batch) -> io::Result<()> {
    let batch = batch.finalize();
    let pages: Vec<&[u8]> = batch.iter().collect();
    let [page] = pages[..] else {
        return Err(io::Error::other("the change does not fit into one message to the kernel"));
    };
    let socket = mnl::Socket::new(mnl::Bus::Netfilter)?;
    prepare(&socket, page.len())?;
    let port = socket.portid();
    socket.send(page)?;

    let mut answers = vec![0; usize::try_from(nftnl::nft_nlmsg_maxsize()).unwrap_or(1 << 17)];
    let mut expected = batch.sequence_numbers();
    while !expected.is_empty() {
        for answer in socket.recv(&mut answers)? {
            let answer = answer?;
            let Some(seq) = expected.next() else {
                return Err(io::Error::other("the kernel answered more than was asked"));
            };
            mnl::cb_run(answer, seq, port)?;
        }
    }
    Ok(())
}

/// Gives a socket room for one large message and for its answers, and an end to waiting.
fn prepare(socket: &mnl::Socket, bytes: usize) -> io::Result<()> {
    let fd = sys::descriptor(socket);
    rustix::net::sockopt::set_socket_timeout(fd, rustix::net::sockopt::Timeout::Recv, Some(ANSWER_LIMIT))?;
    // The kernel doubles what it is given, and keeps some for itself.
    rustix::net::sockopt::set_socket_send_buffer_size_force(fd, bytes.max(1 << 18))?;
    rustix::net::sockopt::set_socket_recv_buffer_size_force(fd, 4 << 20)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_that_the_kernel_does_not_know_name_the_modules() {
        let of = |code| lacking(io::Error::from_raw_os_error(code));
        for code in [libc::ENOENT, libc::EOPNOTSUPP, libc::EAFNOSUPPORT] {
            assert!(of(code).to_string().contains("modprobe -a nft_chain_nat"), "{code}");
        }
        assert_eq!(of(libc::ENOBUFS).raw_os_error(), Some(libc::ENOBUFS), "all else as it is");
    }
}
