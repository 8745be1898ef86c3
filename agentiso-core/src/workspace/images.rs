//! Base images, as callers use them.

use std::{collections::BTreeSet, sync::Arc};

use super::create::dependent_names;
use super::engine::Engine;
use crate::error::Error;
use crate::image::{Catalog, CatalogError, ImageEntry};
use crate::types::{BaseId, ImageName};

/// The base images of a state folder.
#[derive(Clone, Debug)]
pub struct Images {
    engine: Arc<Engine>,
}

impl Images {
    pub(super) fn new(engine: Arc<Engine>) -> Self {
        Self { engine }
    }

    /// All images, by name.
    ///
    /// # Errors
    /// An entry cannot be read.
    pub async fn list(&self) -> Result<Vec<ImageEntry>, Error> {
        self.engine.catalog(|catalog| catalog.list()).await
    }

    /// An image by its name.
    ///
    /// # Errors
    /// There is none; the error names those there are.
    pub async fn info(&self, name: &str) -> Result<ImageEntry, Error> {
        self.engine.find_image(&ImageName::new(name)?).await
    }

    /// Removes an image.
    ///
    /// # Errors
    /// There is none; workspaces began from it (the error names them).
    pub async fn remove(&self, name: &str) -> Result<(), Error> {
        let name = ImageName::new(name)?;
        let engine = Arc::clone(&self.engine);
        self.engine
            .finish(async move {
                let image = engine.find_image(&name).await?;
                if let Err(error) = engine.backends.storage.delete_base(image.base).await {
                    return Err(match dependent_names(&engine, &error).await {
                        Some(dependents) => Error::ImageInUse { image: name.to_string(), dependents },
                        None => error.into(),
                    });
                }
                engine.catalog(move |catalog| catalog.remove(&name)).await
            })
            .await
    }
}

impl Engine {
    /// Runs a query or change of the catalogue away from the async threads.
    pub(super) async fn catalog<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Catalog) -> Result<T, CatalogError> + Send + 'static,
    ) -> Result<T, Error> {
        let catalog = Catalog::new(self.layout.images());
        Ok(tokio::task::spawn_blocking(move || work(&catalog)).await.map_err(Error::Panicked)??)
    }

    pub(super) async fn find_image(&self, name: &ImageName) -> Result<ImageEntry, Error> {
        let name = name.clone();
        self.catalog(move |catalog| catalog.find(&name)).await
    }

    /// The disks that images need.
    pub(super) async fn image_bases(&self) -> Result<BTreeSet<BaseId>, Error> {
        self.catalog(|catalog| catalog.bases()).await
    }
}
