//! URLs to object stores.
