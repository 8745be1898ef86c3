use std::time::Duration;

use agentiso_guest::{
    limits::{JOB_OUTPUT_BYTES, MAX_FINISHED_JOBS, MAX_RUNNING_JOBS},
    message::{Command, Job, Reply, Request},
};

use super::{
    CHUNK_DEADLINE, EXEC_GRACE, GuestClient, GuestError, SHORT_REPLY, clean_text, error::Call, millis,
    secret::Guarded, session::kind,
};

/// Jobs that an agent can have.
const MAX_JOBS: usize = MAX_RUNNING_JOBS + MAX_FINISHED_JOBS;

/// Longest list of jobs, in bytes: each with 256 bytes of command, every one escaped, and its numbers.
const JOBS_REPLY: u32 = 2 * 1024 * 1024;

/// A background job and the newest of what it printed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobReport {
    /// The job.
    pub job: Job,
    /// The end of its standard output, at most 256 KiB.
    pub stdout: Vec<u8>,
    /// The end of its standard error, at most 256 KiB.
    pub stderr: Vec<u8>,
}

impl GuestClient {
    /// Starts a command that goes on without a connection. It is sent to the guest at most once.
    ///
    /// # Errors
    /// See [`GuestError`]; a program that does not exist is [`GuestError::Refused`].
    pub async fn job_start(&self, command: Command) -> Result<Job, GuestError> {
        let request = Guarded(Request::JobStart { command });
        let (call, reply) = self
            .ask("start a background job", &request.0, CHUNK_DEADLINE, |reply| {
                matches!(reply, Reply::Job { .. })
            })
            .await?;
        match reply {
            Reply::Job { job } => Ok(clean(job)),
            other => Err(call.unexpected(kind(&other))),
        }
    }

    /// All background jobs that the agent remembers, in order of their start.
    ///
    /// # Errors
    /// See [`GuestError`]. Nothing in the guest is changed.
    pub async fn job_list(&self) -> Result<Vec<Job>, GuestError> {
        let mut session = self.open("list background jobs", &Request::JobList, JOBS_REPLY).await?;
        let call = session.replies.call();
        match session.replies.next_within(CHUNK_DEADLINE).await?.message {
            Reply::Jobs { jobs } if jobs.len() > MAX_JOBS => Err(call.too_much(MAX_JOBS as u64, "jobs")),
            Reply::Jobs { jobs } => Ok(jobs.into_iter().map(clean).collect()),
            other => Err(call.unexpected(kind(&other))),
        }
    }

    /// State and output so far of a job.
    ///
    /// # Errors
    /// See [`GuestError`]. Nothing in the guest is changed.
    pub async fn job_poll(&self, job: u64) -> Result<JobReport, GuestError> {
        self.report("look at a background job", &Request::JobPoll { job }, job, Some(CHUNK_DEADLINE)).await
    }

    /// Waits until a job ends, or the time is over; then as [`GuestClient::job_poll`].
    ///
    /// # Errors
    /// See [`GuestError`]; that the time is over is none. Nothing in the guest is changed.
    pub async fn job_wait(&self, job: u64, limit: Option<Duration>) -> Result<JobReport, GuestError> {
        let request = Request::JobWait { job, timeout_ms: limit.map(millis) };
        let limit = limit.map(|limit| limit + EXEC_GRACE);
        self.report("wait for a background job", &request, job, limit).await
    }

    /// Sends a signal (1-64) to a job's process group.
    ///
    /// # Errors
    /// See [`GuestError`].
    pub async fn job_signal(&self, job: u64, signal: u8) -> Result<(), GuestError> {
        self.done("signal a background job", Request::JobSignal { job, signal }, CHUNK_DEADLINE).await
    }

    /// `first_limit` is how long the first reply may take; the others follow on its heels.
    async fn report(
        &self,
        operation: &'static str,
        request: &Request,
        id: u64,
        first_limit: Option<Duration>,
    ) -> Result<JobReport, GuestError> {
        let mut session = self.open(operation, request, SHORT_REPLY).await?;
        let call = session.replies.call();
        let mut frame = match first_limit {
            Some(limit) => session.replies.next_within(limit).await?,
            None => session.replies.next().await?,
        };
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        loop {
            match frame.message {
                Reply::Stdout { .. } => keep(call, &mut stdout, &frame.payload)?,
                Reply::Stderr { .. } => keep(call, &mut stderr, &frame.payload)?,
                Reply::Job { job } if job.id == id => {
                    return Ok(JobReport { job: clean(job), stdout, stderr });
                }
                Reply::Job { .. } => return Err(call.unexpected("another job")),
                other => return Err(call.unexpected(kind(&other))),
            }
            frame = session.replies.next_within(CHUNK_DEADLINE).await?;
        }
    }
}

fn keep(call: Call, kept: &mut Vec<u8>, bytes: &[u8]) -> Result<(), GuestError> {
    if bytes.is_empty() {
        return Err(call.unexpected("an empty chunk"));
    }
    if kept.len() + bytes.len() > JOB_OUTPUT_BYTES {
        return Err(call.too_much(JOB_OUTPUT_BYTES as u64, "bytes of each stream"));
    }
    kept.extend_from_slice(bytes);
    Ok(())
}

fn clean(job: Job) -> Job {
    Job { command: clean_text(&job.command), ..job }
}
