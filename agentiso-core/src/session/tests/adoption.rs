use uuid::Uuid;

use crate::session::{AuthError, AuthManager, SessionQuota};

#[tokio::test]
async fn test_force_adopt_quota_exceeded_preserves_previous_owner() {
    let quota = SessionQuota { max_workspaces: 1, max_memory_mb: 1024, max_disk_gb: 10 };
    let auth = AuthManager::new(quota);
    let a = auth.register_session("session-a".to_string()).await.unwrap();
    let b = auth.register_session("session-b".to_string()).await.unwrap();
    let (of_a, of_b) = (Uuid::new_v4(), Uuid::new_v4());
    auth.register_workspace(&a, of_a, 512, 5).await.unwrap();
    auth.register_workspace(&b, of_b, 512, 5).await.unwrap();

    let adopted = auth.adopt_workspace(&b, &of_a, 512, 5, true).await;

    assert!(matches!(adopted, Err(AuthError::QuotaExceeded { .. })), "{adopted:?}");
    auth.check_ownership(&a, of_a).await.unwrap();
    let usage = auth.get_usage(&a).await.unwrap();
    assert_eq!((usage.workspace_count, usage.memory_mb, usage.disk_gb), (1, 512, 5));
}
