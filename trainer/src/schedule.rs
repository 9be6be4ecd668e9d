//! Learning rate over steps: linear warm-up, then half a cosine.
