//! The contract of [`GuestChannel`].

use std::{
    any::Any,
    time::{Duration, Instant},
};

use agentiso_guest::{
    frame::{Decoder, encode, encode_plain},
    hello::{Nonce, Verdict, WelcomeScanner},
    message::{Reply, Request},
};
use async_trait::async_trait;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{PATIENCE, names_in, through_text};
use crate::channel::{
    ChannelDevice, ChannelError, ChannelRecord, ChannelSpec, GuestChannel, GuestStream, Lane,
};

/// A limit that is over soon.
const SOON: Duration = Duration::from_millis(200);

/// What the channel at hand supplies. Dropping it removes what the check left.
#[async_trait]
pub trait ChannelFixture: Send + Sync {
    /// Opens the channel, each time as another process would.
    async fn open(&self) -> Box<dyn GuestChannel>;

    /// What can be prepared: another id and empty folder each time.
    async fn spec(&self) -> ChannelSpec;

    /// Starts what a machine on that device would do: an agent answers on every lane, several connections one after
    /// the other, until the guard is dropped; then nobody listens any more.
    /// [`serve_agent`](crate::testkit::serve_agent) is such an agent for any byte stream.
    async fn boot(&self, device: ChannelDevice, record: &ChannelRecord) -> Box<dyn Any + Send>;
}

/// The contract of [`GuestChannel`] as tests; see the module `testkit::contract`.
#[macro_export]
macro_rules! channel_contract {
    ($fixture:expr) => {
        $crate::contract_tests!(
            channel,
            $fixture,
            [
                connection_reaches_the_agent,
                connect_waits_for_a_guest_that_boots,
                channel_is_reached_from_its_record_alone,
                failed_prepare_leaves_nothing,
                stalled_connections_delay_no_other,
                control_gets_through_when_all_work_lanes_are_busy,
                busy_lanes_are_waited_for,
                dropped_connection_frees_its_lane,
                cancelled_connect_holds_no_lane,
                machine_that_is_gone_is_noticed_at_once,
                released_channel_is_gone,
                channels_do_not_affect_each_other,
            ]
        );
    };
}

/// Says hello and asks the agent for a sign of life, as a client does.
///
/// # Panics
/// The agent does not answer as the protocol says, or not within [`PATIENCE`].
pub async fn ping(stream: &mut GuestStream) {
    tokio::time::timeout(PATIENCE, exchange_ping(stream)).await.expect("the agent answers");
}

async fn exchange_ping(stream: &mut GuestStream) {
    let nonce = Nonce::from_bytes(*uuid::Uuid::new_v4().as_bytes());
    let mut bytes = Vec::new();
    encode_plain(&mut bytes, &stream.introduction().hello(nonce, false)).unwrap();
    encode(&mut bytes, &Request::Ping, &[], nonce).unwrap();
    stream.write_all(&bytes).await.unwrap();
    stream.flush().await.unwrap();

    let mut scanner = WelcomeScanner::new(nonce);
    let mut chunk = [0; 4096];
    let (welcome, rest) = loop {
        let length = stream.read(&mut chunk).await.unwrap();
        assert_ne!(length, 0, "the agent hung up before its welcome");
        if let Some(found) = scanner.feed(&chunk[..length]).unwrap() {
            break found;
        }
    };
    assert_eq!(welcome.verdict, Verdict::Accepted);
    assert!(stream.introduction().is_from_the_machine(&welcome));
    let mut decoder = Decoder::new(nonce);
    decoder.feed(&rest);
    loop {
        if let Some(frame) = decoder.next_frame::<Reply>().unwrap() {
            assert_eq!(frame.message, Reply::Done);
            return;
        }
        let length = stream.read(&mut chunk).await.unwrap();
        assert_ne!(length, 0, "the agent hung up before its reply");
        decoder.feed(&chunk[..length]);
    }
}

async fn booted(
    fixture: &dyn ChannelFixture,
    channel: &dyn GuestChannel,
) -> (ChannelRecord, Box<dyn Any + Send>) {
    let prepared = channel.prepare(fixture.spec().await).await.unwrap();
    let machine = fixture.boot(prepared.device, &prepared.record).await;
    (prepared.record, machine)
}

/// Connects for work until all lanes are taken.
async fn take_all_work_lanes(channel: &dyn GuestChannel, record: &ChannelRecord) -> Vec<GuestStream> {
    let most = channel.capabilities().concurrent;
    let mut taken = Vec::new();
    loop {
        match channel.connect(record, Lane::Work, SOON).await {
            Ok(stream) => taken.push(stream),
            Err(ChannelError::Busy { .. }) => return taken,
            Err(error) => panic!("{error}"),
        }
        assert!(taken.len() <= most, "more connections than the {most} of the capabilities");
    }
}

/// A connection carries a hello and an operation, on either lane.
pub async fn connection_reaches_the_agent(fixture: &dyn ChannelFixture) {
    let channel = fixture.open().await;
    let spec = fixture.spec().await;
    let id = spec.id;
    let prepared = channel.prepare(spec).await.unwrap();
    assert_eq!(prepared.record.id, id);
    let _machine = fixture.boot(prepared.device, &prepared.record).await;

    for lane in [Lane::Work, Lane::Control] {
        ping(&mut channel.connect(&prepared.record, lane, PATIENCE).await.unwrap()).await;
    }
    channel.release(&prepared.record).await.unwrap();
}

/// "Waits ... for a guest that is still booting."
pub async fn connect_waits_for_a_guest_that_boots(fixture: &dyn ChannelFixture) {
    let channel = fixture.open().await;
    let prepared = channel.prepare(fixture.spec().await).await.unwrap();
    let record = prepared.record.clone();

    let reach = async {
        ping(&mut channel.connect(&record, Lane::Work, PATIENCE).await.unwrap()).await;
    };
    let boot = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        fixture.boot(prepared.device, &record).await
    };
    let ((), _machine) = tokio::join!(reach, boot);

    channel.release(&record).await.unwrap();
}

/// Another process reaches the machine with nothing but the record.
pub async fn channel_is_reached_from_its_record_alone(fixture: &dyn ChannelFixture) {
    let (record, _machine) = booted(fixture, &*fixture.open().await).await;
    let record = through_text(&record);
    let channel = fixture.open().await;

    ping(&mut channel.connect(&record, Lane::Work, PATIENCE).await.unwrap()).await;
    channel.release(&record).await.unwrap();
}

/// "On failure nothing is left."
pub async fn failed_prepare_leaves_nothing(fixture: &dyn ChannelFixture) {
    let channel = fixture.open().await;
    let mut spec = fixture.spec().await;
    let folder = spec.run_dir.clone();
    spec.run_dir = folder.join("missing");

    let result = channel.prepare(spec).await;

    assert!(result.is_err());
    assert_eq!(names_in(&folder), [].into());
}

/// "A stalled one delays no other": connections that say nothing, or half a hello, do not matter to the next.
pub async fn stalled_connections_delay_no_other(fixture: &dyn ChannelFixture) {
    let channel = fixture.open().await;
    let (record, _machine) = booted(fixture, &*channel).await;
    let mut silent = channel.connect(&record, Lane::Work, PATIENCE).await.unwrap();
    let mut half = channel.connect(&record, Lane::Work, PATIENCE).await.unwrap();
    half.write_all(&[0, 0, 0]).await.unwrap();

    for _ in 0..10 {
        ping(&mut channel.connect(&record, Lane::Work, PATIENCE).await.unwrap()).await;
    }

    ping(&mut silent).await;
    channel.release(&record).await.unwrap();
}

/// [`Lane::Control`]: "what must get through when users keep every lane busy". As many operations as the capabilities
/// say are under way at once.
pub async fn control_gets_through_when_all_work_lanes_are_busy(fixture: &dyn ChannelFixture) {
    let channel = fixture.open().await;
    let (record, _machine) = booted(fixture, &*channel).await;

    let mut taken = take_all_work_lanes(&*channel, &record).await;
    let control = channel.connect(&record, Lane::Control, PATIENCE).await.unwrap();
    taken.push(control);

    assert_eq!(taken.len(), channel.capabilities().concurrent);
    for stream in &mut taken {
        ping(stream).await;
    }
    channel.release(&record).await.unwrap();
}

/// "Waits for a free lane ... until the limit", then says so; whoever gets a lane meanwhile connects.
pub async fn busy_lanes_are_waited_for(fixture: &dyn ChannelFixture) {
    let channel = fixture.open().await;
    let (record, _machine) = booted(fixture, &*channel).await;
    let mut taken = take_all_work_lanes(&*channel, &record).await;
    let other = fixture.open().await;

    let begin = Instant::now();
    let busy = other.connect(&record, Lane::Work, SOON).await.err();
    let waited = begin.elapsed();
    let (reached, ()) = tokio::join!(other.connect(&record, Lane::Work, PATIENCE), async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        taken.pop();
    });

    assert!(matches!(busy, Some(ChannelError::Busy { id, .. }) if id == record.id), "{busy:?}");
    assert!(waited >= SOON && waited < PATIENCE, "{waited:?}");
    ping(&mut reached.unwrap()).await;
    channel.release(&record).await.unwrap();
}

/// "Dropping it closes it and frees its lane."
pub async fn dropped_connection_frees_its_lane(fixture: &dyn ChannelFixture) {
    let channel = fixture.open().await;
    let (record, _machine) = booted(fixture, &*channel).await;

    for _ in 0..3 * channel.capabilities().concurrent {
        ping(&mut channel.connect(&record, Lane::Work, PATIENCE).await.unwrap()).await;
    }
    for _ in 0..3 {
        ping(&mut channel.connect(&record, Lane::Control, PATIENCE).await.unwrap()).await;
    }
    channel.release(&record).await.unwrap();
}

/// A connect that nobody waits for any more takes no lane, now or later.
pub async fn cancelled_connect_holds_no_lane(fixture: &dyn ChannelFixture) {
    let channel = fixture.open().await;
    let (record, _machine) = booted(fixture, &*channel).await;
    let taken = take_all_work_lanes(&*channel, &record).await;
    let lanes = taken.len();

    for _ in 0..lanes {
        let cancelled =
            tokio::time::timeout(Duration::from_millis(5), channel.connect(&record, Lane::Work, PATIENCE))
                .await;
        assert!(cancelled.is_err());
    }
    drop(taken);

    let mut again = Vec::new();
    for _ in 0..lanes {
        again.push(channel.connect(&record, Lane::Work, PATIENCE).await.unwrap());
    }
    for stream in &mut again {
        ping(stream).await;
    }
    channel.release(&record).await.unwrap();
}

async fn assert_gone_at_once(channel: &dyn GuestChannel, record: &ChannelRecord) {
    for lane in [Lane::Work, Lane::Control] {
        let begin = Instant::now();
        let error = channel.connect(record, lane, PATIENCE).await.err();
        assert!(matches!(error, Some(ChannelError::Gone { id }) if id == record.id), "{error:?}");
        assert!(begin.elapsed() < PATIENCE / 10, "after {:?}", begin.elapsed());
    }
}

/// "Nobody listens: the machine is gone": an open connection ends, and a new one is refused without waiting.
pub async fn machine_that_is_gone_is_noticed_at_once(fixture: &dyn ChannelFixture) {
    let channel = fixture.open().await;
    let (record, machine) = booted(fixture, &*channel).await;
    let mut open = channel.connect(&record, Lane::Work, PATIENCE).await.unwrap();
    ping(&mut open).await;

    drop(machine);

    let mut rest = Vec::new();
    let ended = tokio::time::timeout(PATIENCE, open.read_to_end(&mut rest)).await;
    assert!(ended.is_ok(), "the connection outlives the machine");
    drop(open);
    assert_gone_at_once(&*channel, &record).await;
    channel.release(&record).await.unwrap();
}

/// "Removes what `prepare` made. Already gone: no effect."
pub async fn released_channel_is_gone(fixture: &dyn ChannelFixture) {
    let channel = fixture.open().await;
    let spec = fixture.spec().await;
    let run_dir = spec.run_dir.clone();
    let prepared = channel.prepare(spec).await.unwrap();
    let machine = fixture.boot(prepared.device, &prepared.record).await;
    ping(&mut channel.connect(&prepared.record, Lane::Work, PATIENCE).await.unwrap()).await;
    drop(machine);

    for _ in 0..2 {
        fixture.open().await.release(&prepared.record).await.unwrap();
        assert_eq!(names_in(&run_dir), [].into());
    }
    assert_gone_at_once(&*channel, &prepared.record).await;
}

/// One machine's busy lanes, end and release are nothing to another.
pub async fn channels_do_not_affect_each_other(fixture: &dyn ChannelFixture) {
    let channel = fixture.open().await;
    let (one, machine) = booted(fixture, &*channel).await;
    let (other, _machine) = booted(fixture, &*channel).await;
    let taken = take_all_work_lanes(&*channel, &one).await;

    ping(&mut channel.connect(&other, Lane::Work, SOON).await.unwrap()).await;
    drop(taken);
    drop(machine);
    channel.release(&one).await.unwrap();

    ping(&mut channel.connect(&other, Lane::Work, PATIENCE).await.unwrap()).await;
    channel.release(&other).await.unwrap();
}
