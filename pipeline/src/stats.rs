//! What each stage did: items, bytes, busy and blocked time, queue fill; and which stage limits.
