use crate::types::{BaseId, ImageName};
use crate::{EngineError, Host};

/// Puts an empty image into a host's storage and catalogue, for workspaces whose machines are fakes.
///
/// # Errors
/// The name is not valid; the storage or the catalogue refuses.
pub async fn add_image(host: &Host, name: &str, bytes: u64) -> Result<BaseId, EngineError> {
    Ok(host.images().add_empty(ImageName::new(name)?, bytes).await?)
}
