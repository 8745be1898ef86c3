//! The MCP sessions of one token's clients: so many at once, and no more.

use std::{collections::HashMap, sync::Arc, time::Duration};

use rmcp::transport::streamable_http_server::{
    SessionManager,
    session::{SessionId, local::LocalSessionManager},
};
use tokio::{sync::Mutex, time::Instant};

/// MCP sessions of one token at once. The one that was used least lately makes room for another.
pub(super) const MAX_SESSIONS: usize = 64;

/// How long an MCP session without any message is kept: longer than the commands that its client may wait for.
const KEPT_FOR: Duration = Duration::from_secs(2 * 60 * 60);

/// The MCP sessions of one token's clients.
pub(super) struct McpSessions {
    manager: Arc<LocalSessionManager>,
    used: Mutex<HashMap<SessionId, Instant>>,
}

impl McpSessions {
    pub(super) fn new() -> Self {
        let mut manager = LocalSessionManager::default();
        manager.session_config.keep_alive = Some(KEPT_FOR);
        Self { manager: Arc::new(manager), used: Mutex::default() }
    }

    /// What the transport keeps them in.
    pub(super) fn manager(&self) -> Arc<LocalSessionManager> {
        Arc::clone(&self.manager)
    }

    /// Notes that a request came that names this session, or begins one.
    pub(super) async fn request(&self, session: Option<&str>) {
        let mut used = self.used.lock().await;
        let there: Vec<SessionId> = self.manager.sessions.read().await.keys().cloned().collect();
        match session {
            Some(id) => {
                if let Some(id) = there.into_iter().find(|there| **there == *id) {
                    used.insert(id, Instant::now());
                }
            }
            None if there.len() >= MAX_SESSIONS => {
                used.retain(|id, _| there.contains(id));
                let Some(oldest) = there.into_iter().min_by_key(|id| used.get(id).copied()) else { return };
                used.remove(&oldest);
                if let Err(error) = self.manager.close_session(&oldest).await {
                    tracing::debug!(%error, "could not close an MCP session");
                }
            }
            None => {}
        }
    }
}
