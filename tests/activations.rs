//! What a step keeps between the passes: inputs of blocks parked elsewhere, feed-forward layers that are never whole.

mod feed_forward;
mod offload;
