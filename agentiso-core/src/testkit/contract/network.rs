//! The contract of [`Network`].

use std::{
    any::Any,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use async_trait::async_trait;

use super::{eventually, names_in, through_text};
use crate::{
    network::{AttachSpec, Attachment, Network, NetworkError, NetworkPolicy, NetworkRecord},
    types::{GuestPort, HostPort},
};

/// What the network at hand supplies. Dropping it removes what the check left.
///
/// What a guest reaches through a card is for the backend's own tests: it takes a guest that speaks to the card.
#[async_trait]
pub trait NetworkFixture: Send + Sync {
    /// Opens the network, each time as another process would.
    async fn open(&self) -> Box<dyn Network>;

    /// What can be attached: another id and folder each time, nothing allowed, no forwards.
    async fn spec(&self) -> AttachSpec;

    /// Ends the process behind an attachment from outside, as a crash would.
    async fn crash(&self, attachment: &NetworkRecord);

    /// Lets something foreign listen on a free port of the host's loopback, until the guard is dropped.
    async fn occupy_port(&self) -> (HostPort, Box<dyn Any + Send>) {
        loop {
            let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            let port = u64::from(listener.local_addr().unwrap().port());
            if let Ok(port) = HostPort::new(port) {
                return (port, Box::new(listener));
            }
        }
    }

    /// A port of the host's loopback on which nothing listens.
    async fn free_port(&self) -> HostPort {
        self.occupy_port().await.0
    }

    /// Whether something listens on a port of the host's loopback.
    async fn is_listening(&self, port: HostPort) -> bool {
        tokio::net::TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port.get()))).await.is_ok()
    }
}

/// The contract of [`Network`] as tests; see the module `testkit::contract`.
#[macro_export]
macro_rules! network_contract {
    ($fixture:expr) => {
        $crate::contract_tests!(
            network,
            $fixture,
            [
                attached_card_has_addresses,
                cards_of_two_machines_differ,
                given_forwards_are_in_force_from_the_start,
                attach_with_a_taken_port_leaves_nothing,
                free_port_is_picked,
                asked_port_is_used,
                taken_port_is_refused,
                second_forward_of_a_guest_port_is_refused,
                removed_forward_is_gone,
                policy_update_keeps_forwards,
                what_is_unsupported_is_refused_and_changes_nothing,
                attachment_is_operated_from_its_record_alone,
                crash_is_noticed,
                detach_removes_everything,
                detach_of_a_crashed_attachment_removes_the_rest,
                attachments_do_not_affect_each_other,
                processes_carry_the_workspace,
                listed_process_is_killed_by_its_identity_alone,
            ]
        );
    };
}

fn guest_port(port: u64) -> GuestPort {
    GuestPort::new(port).unwrap()
}

async fn attach(network: &dyn Network, fixture: &dyn NetworkFixture) -> Attachment {
    network.attach(fixture.spec().await).await.unwrap()
}

/// Whether forwards can be tried: on a running machine, or only from the start.
fn forwards_are_live(network: &dyn Network) -> bool {
    network.capabilities().live_forwards
}

/// A card, a record of it, and what the guest must be told all agree.
pub async fn attached_card_has_addresses(fixture: &dyn NetworkFixture) {
    let network = fixture.open().await;
    let spec = fixture.spec().await;
    let id = spec.id;

    let attachment = network.attach(spec).await.unwrap();

    let [first, ..] = attachment.nic.mac.0;
    assert_eq!(first & 0b11, 0b10, "a MAC address of one card, given out locally");
    assert_eq!(attachment.guest.mac.as_deref(), Some(attachment.nic.mac.to_string().as_str()));
    assert_eq!(attachment.record.id, id);
    assert_eq!(attachment.record.address, attachment.guest.address);
    assert!(attachment.guest.address.parse::<IpAddr>().is_ok());
    assert!((1..=32).contains(&attachment.guest.prefix));
    for address in attachment.guest.gateway.iter().chain(&attachment.guest.dns) {
        assert!(address.parse::<IpAddr>().is_ok(), "{address}");
    }
    assert!(network.is_alive(&attachment.record).await.unwrap());
    network.detach(&attachment.record).await.unwrap();
}

/// No two machines have the same MAC address.
pub async fn cards_of_two_machines_differ(fixture: &dyn NetworkFixture) {
    let network = fixture.open().await;

    let one = attach(&*network, fixture).await;
    let other = attach(&*network, fixture).await;

    assert_ne!(one.nic.mac, other.nic.mac);
    network.detach(&one.record).await.unwrap();
    network.detach(&other.record).await.unwrap();
}

/// "Makes a network card with ... these forwards in force."
pub async fn given_forwards_are_in_force_from_the_start(fixture: &dyn NetworkFixture) {
    let network = fixture.open().await;
    let mut spec = fixture.spec().await;
    let port = fixture.free_port().await;
    spec.forwards.insert(guest_port(80), port);

    let attachment = network.attach(spec.clone()).await.unwrap();

    assert_eq!(network.forwards(&attachment.record).await.unwrap(), spec.forwards);
    assert!(fixture.is_listening(port).await);
    network.detach(&attachment.record).await.unwrap();
}

/// "A port that is taken meanwhile is an error." "On failure nothing is left."
pub async fn attach_with_a_taken_port_leaves_nothing(fixture: &dyn NetworkFixture) {
    let network = fixture.open().await;
    let (port, _guard) = fixture.occupy_port().await;
    let mut spec = fixture.spec().await;
    let (id, run_dir) = (spec.id, spec.run_dir.clone());
    let before = names_in(&run_dir);
    spec.forwards.insert(guest_port(80), port);

    let result = network.attach(spec).await;

    assert!(matches!(&result, Err(NetworkError::PortTaken { port: named }) if *named == port), "{result:?}");
    assert!(network.processes().await.unwrap().into_iter().all(|(other, _)| other != id));
    assert_eq!(names_in(&run_dir), before);
}

/// "A free port is picked if none is given."
pub async fn free_port_is_picked(fixture: &dyn NetworkFixture) {
    let network = fixture.open().await;
    if !forwards_are_live(&*network) {
        return;
    }
    let attachment = attach(&*network, fixture).await;

    let one = network.add_forward(&attachment.record, guest_port(80), None).await.unwrap();
    let other = network.add_forward(&attachment.record, guest_port(81), None).await.unwrap();

    assert_ne!(one, other);
    assert!(fixture.is_listening(one).await);
    assert!(fixture.is_listening(other).await);
    let expected = [(guest_port(80), one), (guest_port(81), other)].into();
    assert_eq!(network.forwards(&attachment.record).await.unwrap(), expected);
    network.detach(&attachment.record).await.unwrap();
}

/// "Returns the host's port", which is the one that was asked for.
pub async fn asked_port_is_used(fixture: &dyn NetworkFixture) {
    let network = fixture.open().await;
    if !forwards_are_live(&*network) {
        return;
    }
    let attachment = attach(&*network, fixture).await;
    let free = network.add_forward(&attachment.record, guest_port(80), None).await.unwrap();
    network.remove_forward(&attachment.record, guest_port(80)).await.unwrap();

    let given = network.add_forward(&attachment.record, guest_port(8080), Some(free)).await.unwrap();

    assert_eq!(given, free);
    assert!(fixture.is_listening(free).await);
    network.detach(&attachment.record).await.unwrap();
}

/// "The host's port is taken", by something foreign or another machine.
pub async fn taken_port_is_refused(fixture: &dyn NetworkFixture) {
    let network = fixture.open().await;
    if !forwards_are_live(&*network) {
        return;
    }
    let attachment = attach(&*network, fixture).await;
    let other = attach(&*network, fixture).await;
    let (foreign, _guard) = fixture.occupy_port().await;
    let of_other = network.add_forward(&other.record, guest_port(80), None).await.unwrap();

    for port in [foreign, of_other] {
        let result = network.add_forward(&attachment.record, guest_port(80), Some(port)).await;
        assert!(
            matches!(&result, Err(NetworkError::PortTaken { port: named }) if *named == port),
            "{result:?}"
        );
    }
    assert_eq!(network.forwards(&attachment.record).await.unwrap(), [].into());
    network.detach(&attachment.record).await.unwrap();
    network.detach(&other.record).await.unwrap();
}

/// "The guest's port is forwarded already", to the port that the error names; that one goes on.
pub async fn second_forward_of_a_guest_port_is_refused(fixture: &dyn NetworkFixture) {
    let network = fixture.open().await;
    if !forwards_are_live(&*network) {
        return;
    }
    let attachment = attach(&*network, fixture).await;
    let port = network.add_forward(&attachment.record, guest_port(80), None).await.unwrap();

    let result = network.add_forward(&attachment.record, guest_port(80), None).await;

    let refused = matches!(
        &result,
        Err(NetworkError::AlreadyForwarded { guest, host }) if *guest == guest_port(80) && *host == port
    );
    assert!(refused, "{result:?}");
    assert_eq!(network.forwards(&attachment.record).await.unwrap(), [(guest_port(80), port)].into());
    assert!(fixture.is_listening(port).await);
    network.detach(&attachment.record).await.unwrap();
}

/// "Ends a forward. No such forward: no effect." Its port is free again.
pub async fn removed_forward_is_gone(fixture: &dyn NetworkFixture) {
    let network = fixture.open().await;
    if !forwards_are_live(&*network) {
        return;
    }
    let attachment = attach(&*network, fixture).await;
    let removed = network.add_forward(&attachment.record, guest_port(80), None).await.unwrap();
    let kept = network.add_forward(&attachment.record, guest_port(81), None).await.unwrap();

    for _ in 0..2 {
        network.remove_forward(&attachment.record, guest_port(80)).await.unwrap();
        assert_eq!(network.forwards(&attachment.record).await.unwrap(), [(guest_port(81), kept)].into());
    }
    assert!(!fixture.is_listening(removed).await);
    assert!(fixture.is_listening(kept).await);
    network.detach(&attachment.record).await.unwrap();
}

/// "Forwards ... that the new policy allows are not touched." A network without live policy refuses.
pub async fn policy_update_keeps_forwards(fixture: &dyn NetworkFixture) {
    let network = fixture.open().await;
    let attachment = attach(&*network, fixture).await;
    let mut forwards = [].into();
    if forwards_are_live(&*network) {
        let port = network.add_forward(&attachment.record, guest_port(80), None).await.unwrap();
        forwards = [(guest_port(80), port)].into();
    }

    for allow_internet in [true, true, false] {
        let policy = NetworkPolicy { allow_internet, ..NetworkPolicy::default() };
        let result = network.update_policy(&attachment.record, &policy).await;
        if network.capabilities().live_policy {
            result.unwrap();
        } else {
            assert!(matches!(result, Err(NetworkError::Unsupported { .. })), "{result:?}");
        }
        assert_eq!(network.forwards(&attachment.record).await.unwrap(), forwards);
    }
    for port in forwards.values() {
        assert!(fixture.is_listening(*port).await);
    }
    network.detach(&attachment.record).await.unwrap();
}

/// "What the capabilities exclude ... is refused with the remedy; nothing is changed then."
pub async fn what_is_unsupported_is_refused_and_changes_nothing(fixture: &dyn NetworkFixture) {
    let network = fixture.open().await;
    if network.capabilities().inter_vm {
        return;
    }
    let inter_vm = NetworkPolicy { allow_inter_vm: true, ..NetworkPolicy::default() };
    let attachment = attach(&*network, fixture).await;
    let spec = AttachSpec { policy: inter_vm.clone(), ..fixture.spec().await };
    let id = spec.id;

    let attached = network.attach(spec).await;
    let updated = network.update_policy(&attachment.record, &inter_vm).await;

    assert!(matches!(attached, Err(NetworkError::Unsupported { .. })), "{attached:?}");
    assert!(matches!(updated, Err(NetworkError::Unsupported { .. })), "{updated:?}");
    assert!(network.processes().await.unwrap().into_iter().all(|(other, _)| other != id));
    assert!(network.is_alive(&attachment.record).await.unwrap());
    network.detach(&attachment.record).await.unwrap();
}

/// "An attachment outlives the process that made it; every method but `attach` works from its record alone."
pub async fn attachment_is_operated_from_its_record_alone(fixture: &dyn NetworkFixture) {
    let (record, nic) = {
        let network = fixture.open().await;
        let attachment = attach(&*network, fixture).await;
        (through_text(&attachment.record), attachment.nic)
    };
    let network = fixture.open().await;

    assert!(network.is_alive(&record).await.unwrap());
    if forwards_are_live(&*network) {
        let port = network.add_forward(&record, guest_port(80), None).await.unwrap();
        let forwards = fixture.open().await.forwards(&record).await.unwrap();
        assert_eq!(forwards, [(guest_port(80), port)].into());
        fixture.open().await.remove_forward(&record, guest_port(80)).await.unwrap();
    }
    fixture.open().await.detach(&record).await.unwrap();
    assert!(!network.is_alive(&record).await.unwrap());
    drop(nic);
}

/// An attachment whose process died is not alive, and what it cannot do any more says [`NetworkError::Gone`].
pub async fn crash_is_noticed(fixture: &dyn NetworkFixture) {
    let network = fixture.open().await;
    let attachment = attach(&*network, fixture).await;

    fixture.crash(&attachment.record).await;

    let record = &attachment.record;
    eventually("it is not alive", async || !network.is_alive(record).await.unwrap()).await;
    let results = [
        ("update_policy", network.update_policy(record, &NetworkPolicy::default()).await),
        ("add_forward", network.add_forward(record, guest_port(80), None).await.map(drop)),
        ("forwards", network.forwards(record).await.map(drop)),
    ];
    for (operation, result) in results {
        let gone = matches!(result, Err(NetworkError::Gone { id }) if id == record.id);
        assert!(gone, "{operation}: {result:?}");
    }
    network.detach(record).await.unwrap();
}

async fn assert_detached(network: &dyn Network, record: &NetworkRecord, run_dir: &std::path::Path) {
    assert!(!network.is_alive(record).await.unwrap());
    assert!(network.processes().await.unwrap().into_iter().all(|(id, _)| id != record.id));
    assert_eq!(names_in(run_dir), [].into());
}

/// "Removes the card and everything made for it. Already gone: no effect."
pub async fn detach_removes_everything(fixture: &dyn NetworkFixture) {
    let network = fixture.open().await;
    let spec = fixture.spec().await;
    let run_dir = spec.run_dir.clone();
    let attachment = network.attach(spec).await.unwrap();
    let mut port = None;
    if forwards_are_live(&*network) {
        port = Some(network.add_forward(&attachment.record, guest_port(80), None).await.unwrap());
    }

    for _ in 0..2 {
        network.detach(&attachment.record).await.unwrap();
        assert_detached(&*network, &attachment.record, &run_dir).await;
    }
    if let Some(port) = port {
        assert!(!fixture.is_listening(port).await);
    }
}

/// Detaching works whatever became of the process.
pub async fn detach_of_a_crashed_attachment_removes_the_rest(fixture: &dyn NetworkFixture) {
    let network = fixture.open().await;
    let spec = fixture.spec().await;
    let run_dir = spec.run_dir.clone();
    let attachment = network.attach(spec).await.unwrap();
    fixture.crash(&attachment.record).await;

    network.detach(&attachment.record).await.unwrap();

    assert_detached(&*network, &attachment.record, &run_dir).await;
}

/// What is done to one attachment leaves another alone.
pub async fn attachments_do_not_affect_each_other(fixture: &dyn NetworkFixture) {
    let network = fixture.open().await;
    let one = attach(&*network, fixture).await;
    let other = attach(&*network, fixture).await;

    network.detach(&one.record).await.unwrap();

    assert!(network.is_alive(&other.record).await.unwrap());
    assert_eq!(network.forwards(&other.record).await.unwrap(), [].into());
    network.detach(&other.record).await.unwrap();
}

/// Whatever runs for an attachment is listed under its workspace, while it runs.
pub async fn processes_carry_the_workspace(fixture: &dyn NetworkFixture) {
    let network = fixture.open().await;
    let before = network.processes().await.unwrap();
    let attachment = attach(&*network, fixture).await;
    let id = attachment.record.id;

    let during = fixture.open().await.processes().await.unwrap();
    network.detach(&attachment.record).await.unwrap();
    let after = network.processes().await.unwrap();

    for (owner, process) in during {
        assert!(owner == id || before.contains(&(owner, process)), "{owner}");
    }
    assert!(after.into_iter().all(|(owner, _)| owner != id));
}

/// "Ends a process that `processes` listed, and waits until it is gone." "Another process has its number by now: no
/// effect."
pub async fn listed_process_is_killed_by_its_identity_alone(fixture: &dyn NetworkFixture) {
    let network = fixture.open().await;
    let attachment = attach(&*network, fixture).await;
    let id = attachment.record.id;
    let listed = async || network.processes().await.unwrap().into_iter().filter(|(owner, _)| *owner == id);

    for (_, process) in listed().await {
        let mut earlier = process.clone();
        earlier.start_ticks -= 1;
        network.kill_process(&earlier).await.unwrap();
    }
    assert!(network.is_alive(&attachment.record).await.unwrap());
    for (_, process) in listed().await {
        for _ in 0..2 {
            fixture.open().await.kill_process(&process).await.unwrap();
        }
    }

    assert_eq!(listed().await.count(), 0);
    network.detach(&attachment.record).await.unwrap();
}
