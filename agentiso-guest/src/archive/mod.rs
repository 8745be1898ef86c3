//! Tar streams, in and out.

mod compression;
mod tar_stream;
mod unpack;
mod wire;

use agentiso_guest::message::Compression;

use crate::failure::Stop;
use crate::files::check_path;
use crate::serve::Connection;

mod pack;

pub(crate) use pack::read;

/// Unpacks the tar stream that the connection brings below `path`. Entries written before a failure stay.
///
/// # Errors
/// The stream is no tar, an entry cannot be written or would lie outside the folder, or the connection is lost.
pub(crate) fn write(
    connection: &mut Connection,
    path: &str,
    compression: Compression,
    preserve: bool,
) -> Result<(), Stop> {
    let path = check_path(path)?;
    let mut input = wire::DataReader::new(connection);
    let result = compression::decompress(&mut input, compression).and_then(|mut plain| {
        unpack::unpack(&mut plain, path, preserve)?;
        // Padding behind the archive, and the checksum of its compression, belong to the stream.
        compression::drain(&mut plain)
    });
    if let Err(failure) = result {
        return Err(input.why_it_failed(failure));
    }
    input.finish()
}
