//! The tokio runtime for I/O, apart from all decoding.
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::runtime::{Builder, Handle, Runtime};

/// The tokio runtime for I/O, apart from all decoding; one a process is enough. Cheap to clone; the
/// last clone stops the threads, from whichever thread it is dropped.
#[derive(Debug, Clone)]
pub struct IoRuntime {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// Taken when dropped, and only then.
    runtime: Option<Runtime>,
    handle: Handle,
}

impl IoRuntime {
    /// Starts `threads` I/O threads (at least one), named `nepa-io-0`, `nepa-io-1`, ...
    pub fn new(threads: usize) -> std::io::Result<Self> {
        let next = AtomicUsize::new(0);
        let runtime = Builder::new_multi_thread()
            .worker_threads(threads.max(1))
            // For local files; they need no more than the disk takes at once.
            .max_blocking_threads(16)
            .thread_name_fn(move || format!("nepa-io-{}", next.fetch_add(1, Ordering::Relaxed)))
            .enable_all()
            .build()?;
        let handle = runtime.handle().clone();
        Ok(Self {
            inner: Arc::new(Inner {
                runtime: Some(runtime),
                handle,
            }),
        })
    }

    /// The runtime of the caller, which keeps it.
    #[cfg(all(test, not(nepa_interleavings)))]
    pub(crate) fn current() -> Self {
        let inner = Inner {
            runtime: None,
            handle: Handle::current(),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Runs a future on this runtime and waits for it. Not for use inside async code.
    pub fn block_on<F>(&self, future: F) -> F::Output
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.inner.handle.block_on(future)
    }

    /// Starts a task that ends with `tasks`.
    #[cfg(not(nepa_interleavings))]
    pub(crate) fn spawn_in<F>(&self, tasks: &mut tokio::task::JoinSet<()>, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        tasks.spawn_on(future, &self.inner.handle);
    }

    /// Starts a task.
    pub(crate) fn spawn<F>(&self, future: F) -> tokio::task::JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.inner.handle.spawn(future)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let Some(runtime) = self.runtime.take() else {
            return;
        };
        if Handle::try_current().is_ok() {
            // The last clone went with a task: a runtime's own thread cannot wait for itself.
            runtime.shutdown_background();
        } else {
            runtime.shutdown_timeout(Duration::from_secs(5));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_safe_to_drop_from_its_own_task() {
        let runtime = IoRuntime::new(1).unwrap();
        let (sender, receiver) = std::sync::mpsc::channel();
        let clone = runtime.clone();
        runtime.spawn(async move {
            tokio::time::sleep(Duration::from_millis(20)).await;
            drop(clone);
            sender
                .send(std::thread::current().name().map(str::to_owned))
                .unwrap();
        });
        drop(runtime);
        let name = receiver
            .recv_timeout(Duration::from_secs(5))
            .unwrap()
            .unwrap();
        assert!(name.starts_with("nepa-io-"), "{name}");
    }

    #[test]
    fn runs_a_future() {
        assert_eq!(IoRuntime::new(2).unwrap().block_on(async { 3 }), 3);
    }
}
