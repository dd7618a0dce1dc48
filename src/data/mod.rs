//! Data sets: from a folder of clips and captions to batches. Knows no model.
