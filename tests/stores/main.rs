//! The program on stores that nobody here wrote, and through faults of the line to a store. `make stores` runs it.
//!
//! Not a part of `make test`, as it takes minutes and servers. A server that is not installed is skipped out loud.
mod credentials;
mod life;
mod outages;
mod run;
mod servers;
mod signals;
mod writers;
