//! AdamW with groups, clipping and EMA over flat f32 buffers.
