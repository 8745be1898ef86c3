//! How long chains of layers may become, and what makes them short again.

use super::{DiskLayer, LayerId};

/// Layers that a disk may have before a running machine pulls some of them together. Each one costs the machine two
/// descriptors and some hundred KiB, and a read of what was never written passes through all of them.
pub const MAX_CHAIN_DEPTH: usize = 8;

/// Layers that a disk may have when it is forked. With two below what its forks may have, it is short again before they
/// are long: one machine copies then, and not each of its many forks while they start.
pub const FORKED_CHAIN_DEPTH: usize = MAX_CHAIN_DEPTH - 2;

/// Layers that are left at most. Half as many as there may be: each layer that is pulled up is copied once for every
/// few snapshots, and not for each one.
const SHORT_CHAIN_DEPTH: usize = MAX_CHAIN_DEPTH / 2;

/// What makes a disk's chain short: its user copies into the topmost layer whatever the layers to be dropped hold and
/// the topmost does not, and reads on through the base.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShortenPlan {
    /// The layer that is written to. It stays, and grows.
    pub top: DiskLayer,
    /// The layers between, topmost first: the disk is left by them, its snapshots and other disks may need them.
    pub dropped: Vec<LayerId>,
    /// The layer that is right beneath the topmost afterwards.
    pub base: LayerId,
    /// How many layers there are then beneath the topmost, the base included.
    pub beneath: usize,
}

/// Which layer of a chain becomes the one right beneath the topmost; `None` if the chain has `most` layers or fewer.
///
/// `shared` says of each layer, topmost first, whether other disks use it too. What is shared is not pulled up as long
/// as that leaves a short chain: each of many forks would otherwise get a copy of what they began with. The lowest
/// layers stay in any case, for they are the image.
pub(crate) fn new_base(shared: &[bool], most: usize) -> Option<usize> {
    let depth = shared.len();
    // Nothing is left to drop in a chain of what is left of longer ones.
    if depth <= most.max(SHORT_CHAIN_DEPTH) {
        return None;
    }
    let lowest = depth - 1;
    let first_shared = shared.iter().skip(1).position(|shared| *shared).map_or(lowest, |at| at + 1);
    Some(first_shared.max(depth + 1 - SHORT_CHAIN_DEPTH).min(lowest))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A chain of so many layers, of which the lowest are shared.
    fn chain(depth: usize, shared: usize) -> Vec<bool> {
        (0..depth).map(|at| at >= depth - shared).collect()
    }

    #[test]
    fn chain_of_eight_is_short_enough_and_one_of_nine_is_not() {
        assert_eq!(new_base(&chain(MAX_CHAIN_DEPTH, 1), MAX_CHAIN_DEPTH), None);
        assert_eq!(new_base(&chain(MAX_CHAIN_DEPTH + 1, 1), MAX_CHAIN_DEPTH), Some(MAX_CHAIN_DEPTH));
    }

    #[test]
    fn shared_layers_stay_where_they_are_while_the_chain_gets_short_all_the_same() {
        assert_eq!(new_base(&chain(12, 3), MAX_CHAIN_DEPTH), Some(9));
        assert_eq!(
            new_base(&chain(12, 4), MAX_CHAIN_DEPTH),
            Some(9),
            "four shared ones and the topmost are too many"
        );
        assert_eq!(new_base(&chain(40, 39), MAX_CHAIN_DEPTH), Some(37));
    }

    #[test]
    fn what_is_left_is_short_whatever_is_shared() {
        for depth in FORKED_CHAIN_DEPTH + 1..60 {
            for shared in 1..depth {
                let base = new_base(&chain(depth, shared), FORKED_CHAIN_DEPTH).unwrap();
                let left = 1 + depth - base;
                assert!((2..=SHORT_CHAIN_DEPTH).contains(&left), "{depth} layers, {shared} shared: {left}");
            }
        }
    }
}
