pub(super) mod crash;
mod damage;
mod fixture;
mod layers;
mod model;

crate::storage_contract!(fixture::QemuFixture::new());
