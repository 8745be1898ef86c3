//! Background jobs: commands that go on without a connection. Their output is kept by the [`keeper`](crate::keeper), the
//! newest of it, and asked for by number.

mod job;
mod kept;

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use agentiso_guest::limits::{MAX_FINISHED_JOBS, MAX_RUNNING_JOBS};
use agentiso_guest::message::{Command, ErrorCode, Input, Reply};
use rustix::event::PollFlags;

pub(crate) use job::{Job, Orphan, Stream};
pub(crate) use kept::Kept;

use crate::agent::{Agent, lock};
use crate::exec::{Prepared, output_pipe};
use crate::failure::{Failure, Stop};
use crate::freezer;
use crate::serve::{Connection, OUTPUT_LIMIT};

/// Most jobs that there are at once, ended ones included.
const MAX_JOBS: usize = MAX_RUNNING_JOBS + MAX_FINISHED_JOBS;

/// All jobs that are remembered, by number.
#[derive(Debug, Default)]
pub(crate) struct Jobs {
    started: AtomicU64,
    table: Mutex<BTreeMap<u64, Arc<Job>>>,
}

impl Jobs {
    fn next_id(&self) -> u64 {
        self.started.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn find(&self, id: u64) -> Result<Arc<Job>, Failure> {
        lock(&self.table).get(&id).cloned().ok_or_else(|| {
            Failure::new(ErrorCode::NotFound, format!("there is no job {id}; it may have been forgotten"))
        })
    }
}

/// Starts a job.
///
/// # Errors
/// The command cannot be started, or too many jobs run.
pub(crate) fn start(agent: &Agent, connection: &mut Connection, command: &Command) -> Result<Reply, Stop> {
    let prepared = Prepared::new(agent, command, false)?;
    let entry = freezer::enter(agent, connection)?;
    let (stdout, stdout_of_child) = output_pipe()?;
    let (stderr, stderr_of_child) = output_pipe()?;
    let mut table = lock(&agent.jobs.table);
    let running = table.values().filter(|job| job.is_running()).count();
    if running >= MAX_RUNNING_JOBS {
        return Err(Failure::new(
            ErrorCode::Exhausted,
            format!("{running} background jobs run already, the most there can be; end one first"),
        )
        .into());
    }
    // Under the lock, so that no more than the limit can start at once.
    let stdio = [agent.null.as_fd(), stdout_of_child.as_fd(), stderr_of_child.as_fd()];
    let child = prepared.start(agent, entry.as_ref(), stdio, false)?;
    let id = agent.jobs.next_id();
    let job = Arc::new(Job::new(id, child, [stdout, stderr], &command.argv));
    table.insert(id, Arc::clone(&job));
    forget_oldest(&mut table);
    drop(table);
    agent.keeper.keep_job(&job);
    Ok(Reply::Job { job: job.describe() })
}

/// Makes a job of a command whose connection is gone, even if as many jobs run as may be started: it runs already.
///
/// # Errors
/// There are as many jobs as can be listed, and all of them run. The command is given back.
pub(crate) fn adopt(agent: &Agent, mut orphan: Orphan) -> Result<(), Box<Orphan>> {
    let mut table = lock(&agent.jobs.table);
    if table.values().filter(|job| job.is_running()).count() >= MAX_JOBS {
        return Err(Box::new(orphan));
    }
    let (input, deadline) = (orphan.input.take(), orphan.deadline);
    let id = agent.jobs.next_id();
    let job = Arc::new(Job::adopt(id, orphan));
    table.insert(id, Arc::clone(&job));
    forget_oldest(&mut table);
    drop(table);
    agent.keeper.keep_job(&job);
    if let Some(deadline) = deadline {
        agent.keeper.end_job_at(&job, deadline);
    }
    if let Some((fd, bytes)) = input {
        agent.keeper.feed(fd, bytes);
    }
    Ok(())
}

/// Forgets what ended first, so that no more are remembered than may be, ended or in all.
fn forget_oldest(table: &mut BTreeMap<u64, Arc<Job>>) {
    let finished: Vec<u64> = table.iter().filter(|(_, job)| !job.is_running()).map(|(id, _)| *id).collect();
    let running = table.len() - finished.len();
    let remembered = MAX_FINISHED_JOBS.min(MAX_JOBS.saturating_sub(running));
    for id in &finished[..finished.len().saturating_sub(remembered)] {
        table.remove(id);
    }
}

/// All jobs that are remembered.
pub(crate) fn list(agent: &Agent) -> Reply {
    Reply::Jobs { jobs: lock(&agent.jobs.table).values().map(|job| job.describe()).collect() }
}

/// Sends what is kept of a job's output, and its state.
///
/// # Errors
/// There is no such job, or the connection is lost.
pub(crate) fn poll(agent: &Agent, connection: &mut Connection, id: u64) -> Result<Reply, Stop> {
    let job = agent.jobs.find(id)?;
    report(&job, connection)
}

fn report(job: &Job, connection: &mut Connection) -> Result<Reply, Stop> {
    let (description, stdout, stderr) = job.snapshot();
    for (stream, bytes) in [(Stream::Stdout, stdout), (Stream::Stderr, stderr)] {
        if !bytes.is_empty() {
            stream.send(connection, &bytes);
        }
    }
    Ok(Reply::Job { job: description })
}

/// Waits until a job has ended or the time is over, then reports it.
///
/// # Errors
/// There is no such job, or the connection is lost.
pub(crate) fn wait(
    agent: &Agent,
    connection: &mut Connection,
    id: u64,
    timeout_ms: Option<u64>,
) -> Result<Reply, Stop> {
    let job = agent.jobs.find(id)?;
    let deadline = timeout_ms.and_then(|limit| Instant::now().checked_add(Duration::from_millis(limit)));
    let watch = job.watch()?;
    while !job.is_complete() && deadline.is_none_or(|deadline| Instant::now() < deadline) {
        while connection.next_message::<Input>()?.is_some() {}
        connection.wait(true, [Some((watch.as_fd(), PollFlags::IN))], deadline)?;
        watch.clear();
    }
    report(&job, connection)
}

/// Streams a job's output, beginning with what is kept, until it ends. Output that comes faster than the connection
/// takes it, by more than what is kept, is left out.
///
/// # Errors
/// There is no such job, or the connection is lost; the job goes on.
pub(crate) fn attach(agent: &Agent, connection: &mut Connection, id: u64) -> Result<Reply, Stop> {
    let job = agent.jobs.find(id)?;
    let watch = job.watch()?;
    connection.send(&Reply::Started { pid: job.describe().pid });
    let mut seen = [0; 2];
    loop {
        while let Some(frame) = connection.next_message::<Input>()? {
            if let Input::Signal { signal: signal @ 1..=64 } = frame.message {
                // A job that has just ended takes no signal, and its end is what comes next.
                let _ = job.signal(signal);
            }
        }
        // Asked before the output is taken: a job that is complete prints no more.
        let exit = job.completed();
        let mut is_behind = false;
        for stream in [Stream::Stdout, Stream::Stderr] {
            while connection.pending() < OUTPUT_LIMIT
                && let Some(bytes) = job.output_after(stream, &mut seen[stream.index()])
            {
                stream.send(connection, &bytes);
            }
            is_behind |= job.has_output_after(stream, seen[stream.index()]);
        }
        if let Some(exit) = exit
            && !is_behind
        {
            return Ok(Reply::Exited { exit });
        }
        let news = (!is_behind).then(|| (watch.as_fd(), PollFlags::IN));
        connection.wait(true, [news], None)?;
        watch.clear();
    }
}

/// Sends a signal to a job's process group.
///
/// # Errors
/// There is no such job, it has ended, or there is no such signal.
pub(crate) fn signal(agent: &Agent, id: u64, signal: u8) -> Result<(), Failure> {
    if !(1..=64).contains(&signal) {
        return Err(Failure::invalid(format!("there is no signal {signal}; signals are 1 to 64")));
    }
    agent.jobs.find(id)?.signal(signal)
}
