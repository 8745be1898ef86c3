use crate::image::ImageEntry;
use crate::types::{BaseId, ImageName};
use crate::{Error, Host};

/// Puts an empty image into a host's storage and catalogue, for workspaces whose machines are fakes.
///
/// # Errors
/// The name is not valid; the storage or the catalogue refuses.
pub async fn add_image(host: &Host, name: &str, bytes: u64) -> Result<BaseId, Error> {
    let base = BaseId::random();
    let storage = host.storage();
    storage.begin_base(base, bytes).await?;
    let sealed = storage.seal_base(base).await?;
    let entry = ImageEntry {
        name: ImageName::new(name)?,
        base,
        created_at: 0,
        source: "nothing".to_owned(),
        bytes: sealed.bytes,
        used_bytes: sealed.used_bytes,
        kernel_release: String::new(),
    };
    host.catalog_put(entry).await?;
    Ok(base)
}
