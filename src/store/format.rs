//! What the keys and values in the store mean.
