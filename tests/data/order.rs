//! The order of batches.

use std::collections::{BTreeMap, HashSet};

use super::bucket;
use vtrain::data::{Bucket, Order};

/// Seven samples of one bucket and four of another, one of these three times.
fn samples() -> Vec<(Bucket, usize)> {
    let (wide, tall) = (bucket(17, 32, 48), bucket(17, 48, 32));
    (0..11)
        .map(|n| {
            (
                if n % 3 == 2 || n == 10 { tall } else { wide },
                if n == 10 { 3 } else { 1 },
            )
        })
        .collect()
}

#[test]
fn batches_never_mix_buckets_and_no_sample_is_dropped() {
    for batch_size in [1, 2, 3, 5, 100] {
        let order = Order::new(samples(), batch_size, 42);
        let batches = order.epoch(0);
        assert_eq!(batches.len(), order.batches_per_epoch());
        let mut seen = BTreeMap::new();
        for batch in &batches {
            assert!((1..=batch_size).contains(&batch.samples.len()));
            for &sample in &batch.samples {
                assert_eq!(samples()[sample].0, batch.bucket);
                *seen.entry(sample).or_insert(0) += 1;
            }
        }
        let wanted: BTreeMap<_, _> = samples().iter().map(|s| s.1).enumerate().collect();
        assert_eq!(seen, wanted, "each as often as it is repeated");
    }
}

#[test]
fn the_order_depends_on_the_seed_and_the_epoch_only() {
    let order = |seed| Order::new(samples(), 2, seed);
    assert_eq!(order(42).epoch(3), order(42).epoch(3));
    let orders: HashSet<_> = (0..4)
        .flat_map(|seed| (0..4).map(move |epoch| format!("{:?}", order(seed).epoch(epoch))))
        .collect();
    assert_eq!(orders.len(), 16, "no seed and epoch draws the order of another");
}

#[test]
fn the_batch_with_a_global_index_is_found_without_the_ones_before_it() {
    let mut order = Order::new(samples(), 2, 7);
    let in_turn: Vec<_> = (0..4).flat_map(|epoch| order.epoch(epoch)).collect();
    for i in [0, 1, 20, 5, 13, in_turn.len() - 1] {
        assert_eq!(order.batch_at(i as u64), Some(&in_turn[i]), "batch {i}");
    }
    assert!(order.batch_at(u64::MAX).is_some());
}

#[test]
fn without_samples_or_batch_size_there_are_no_batches() {
    assert_eq!(Order::new([], 2, 0).batch_at(0), None);
    assert_eq!(Order::new(samples(), 0, 0).batch_at(5), None);
}
