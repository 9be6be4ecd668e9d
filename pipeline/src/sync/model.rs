//! crossbeam's channels, as far as the loader uses them, over `shuttle`'s locks: every operation is
//! a point at which the scheduler may go on with another thread, and a wait that nobody ends is
//! reported as a deadlock. There is no time: a wait with a deadline waits for good, or gives up at
//! once where it may.
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::{RecvError, RecvTimeoutError, SendError, TryRecvError, TrySendError};
use shuttle::rand::Rng;
use shuttle::sync::{Condvar, Mutex};

shuttle::lazy_static! {
    /// Counts everything that happens to any channel; whoever waits, waits for the next.
    static ref EVENTS: (Mutex<u64>, Condvar) = (Mutex::new(0), Condvar::new());
}

fn happened() {
    *EVENTS.0.lock().unwrap() += 1;
    EVENTS.1.notify_all();
}

pub(crate) fn events() -> u64 {
    *EVENTS.0.lock().unwrap()
}

/// Waits for something after `seen`.
pub(crate) fn wait(seen: u64) {
    let mut events = EVENTS.0.lock().unwrap();
    while *events == seen {
        events = EVENTS.1.wait(events).unwrap();
    }
}

/// Whether the arm that comes second in a selection is looked at first.
pub(crate) fn second_first() -> bool {
    shuttle::rand::thread_rng().r#gen()
}

struct State<T> {
    queue: VecDeque<T>,
    senders: usize,
    receivers: usize,
}

struct Channel<T> {
    capacity: usize,
    state: Mutex<State<T>>,
}

impl<T> Channel<T> {
    /// Changes the state, and tells all who wait.
    fn change<R>(&self, change: impl FnOnce(&mut State<T>) -> R) -> R {
        let result = change(&mut self.state.lock().unwrap());
        happened();
        result
    }
}

/// Whether a test has failed already: what is dropped then must not ask the scheduler for anything.
fn is_over() -> bool {
    std::thread::panicking()
}

pub(crate) struct Sender<T>(Arc<Channel<T>>);

/// `None` never receives.
pub(crate) struct Receiver<T>(Option<Arc<Channel<T>>>);

pub(crate) fn bounded<T>(capacity: usize) -> (Sender<T>, Receiver<T>) {
    let state = State {
        queue: VecDeque::new(),
        senders: 1,
        receivers: 1,
    };
    let channel = Arc::new(Channel {
        capacity,
        state: Mutex::new(state),
    });
    (Sender(Arc::clone(&channel)), Receiver(Some(channel)))
}

pub(crate) fn unbounded<T>() -> (Sender<T>, Receiver<T>) {
    bounded(usize::MAX)
}

pub(crate) fn never<T>() -> Receiver<T> {
    Receiver(None)
}

impl<T> Sender<T> {
    pub(crate) fn try_send(&self, value: T) -> Result<(), TrySendError<T>> {
        let mut state = self.0.state.lock().unwrap();
        if state.receivers == 0 {
            return Err(TrySendError::Disconnected(value));
        }
        if state.queue.len() >= self.0.capacity {
            return Err(TrySendError::Full(value));
        }
        state.queue.push_back(value);
        drop(state);
        happened();
        Ok(())
    }

    pub(crate) fn send(&self, mut value: T) -> Result<(), SendError<T>> {
        loop {
            let seen = events();
            match self.try_send(value) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Disconnected(value)) => return Err(SendError(value)),
                Err(TrySendError::Full(back)) => value = back,
            }
            wait(seen);
        }
    }
}

impl<T> Receiver<T> {
    pub(crate) fn try_recv(&self) -> Result<T, TryRecvError> {
        let Some(channel) = &self.0 else {
            return Err(TryRecvError::Empty);
        };
        let mut state = channel.state.lock().unwrap();
        let value = state.queue.pop_front();
        let senders = state.senders;
        drop(state);
        match value {
            Some(value) => {
                happened();
                Ok(value)
            }
            None if senders == 0 => Err(TryRecvError::Disconnected),
            None => Err(TryRecvError::Empty),
        }
    }

    pub(crate) fn recv(&self) -> Result<T, RecvError> {
        loop {
            let seen = events();
            match self.try_recv() {
                Ok(value) => return Ok(value),
                Err(TryRecvError::Disconnected) => return Err(RecvError),
                Err(TryRecvError::Empty) => wait(seen),
            }
        }
    }

    /// The wait is that of a report only.
    pub(crate) fn recv_timeout(&self, _after: Duration) -> Result<T, RecvTimeoutError> {
        self.recv()
            .map_err(|RecvError| RecvTimeoutError::Disconnected)
    }

    pub(crate) fn recv_deadline(&self, _deadline: Instant) -> Result<T, RecvTimeoutError> {
        self.try_recv().map_err(|error| match error {
            TryRecvError::Empty => RecvTimeoutError::Timeout,
            TryRecvError::Disconnected => RecvTimeoutError::Disconnected,
        })
    }

    pub(crate) fn len(&self) -> usize {
        let channel = self.0.as_ref();
        channel.map_or(0, |channel| channel.state.lock().unwrap().queue.len())
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.0.change(|state| state.senders += 1);
        Self(Arc::clone(&self.0))
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        if !is_over() {
            self.0.change(|state| state.senders -= 1);
        }
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        if let Some(channel) = &self.0 {
            channel.change(|state| state.receivers += 1);
        }
        Self(self.0.clone())
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let Some(channel) = self.0.as_ref().filter(|_| !is_over()) else {
            return;
        };
        // What nobody can take any more is dropped with the last receiver, outside of the lock: it
        // may hold channels.
        let lost = channel.change(|state| {
            state.receivers -= 1;
            if state.receivers == 0 {
                std::mem::take(&mut state.queue)
            } else {
                VecDeque::new()
            }
        });
        drop(lost);
    }
}

impl<T> std::fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sender")
    }
}

impl<T> std::fmt::Debug for Receiver<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Receiver")
    }
}

/// What a selection's receiver has now, a value or its end.
pub(crate) fn ready<T>(receiver: &Receiver<T>) -> Option<Result<T, RecvError>> {
    match receiver.try_recv() {
        Ok(value) => Some(Ok(value)),
        Err(TryRecvError::Disconnected) => Some(Err(RecvError)),
        Err(TryRecvError::Empty) => None,
    }
}

/// Sends if there is room or nobody to receive; else the value stays.
pub(crate) fn sent<T>(
    sender: &Sender<T>,
    value: &mut Option<T>,
) -> Option<Result<(), SendError<T>>> {
    match sender.try_send(value.take()?) {
        Ok(()) => Some(Ok(())),
        Err(TrySendError::Disconnected(value)) => Some(Err(SendError(value))),
        Err(TrySendError::Full(back)) => {
            *value = Some(back);
            None
        }
    }
}

/// The shapes of crossbeam's `select_biased!` that the loader uses; no arm may `continue` or
/// `break`.
macro_rules! select_biased {
    ($(recv($receiver:expr) -> $got:pat => $then:expr),+ $(,)?) => {
        'selected: loop {
            let seen = $crate::sync::model::events();
            $(if let Some($got) = $crate::sync::model::ready(&$receiver) {
                break 'selected ($then);
            })+
            $crate::sync::model::wait(seen);
        }
    };
}

/// The same of `select!`, which takes any arm that is ready.
macro_rules! select {
    (recv($first:expr) -> $got:pat => $then:expr, recv($second:expr) -> $other:pat => $or:expr $(,)?) => {
        'selected: loop {
            let seen = $crate::sync::model::events();
            if $crate::sync::model::second_first()
                && let Some($other) = $crate::sync::model::ready(&$second)
            {
                break 'selected ($or);
            }
            if let Some($got) = $crate::sync::model::ready(&$first) {
                break 'selected ($then);
            }
            if let Some($other) = $crate::sync::model::ready(&$second) {
                break 'selected ($or);
            }
            $crate::sync::model::wait(seen);
        }
    };
    (send($sender:expr, $value:expr) -> $sent:pat => $then:expr, recv($second:expr) -> $other:pat => $or:expr $(,)?) => {{
        let mut value = Some($value);
        'selected: loop {
            let seen = $crate::sync::model::events();
            if $crate::sync::model::second_first()
                && let Some($other) = $crate::sync::model::ready(&$second)
            {
                break 'selected ($or);
            }
            if let Some($sent) = $crate::sync::model::sent(&$sender, &mut value) {
                break 'selected ($then);
            }
            if let Some($other) = $crate::sync::model::ready(&$second) {
                break 'selected ($or);
            }
            $crate::sync::model::wait(seen);
        }
    }};
}

pub(crate) use select;
pub(crate) use select_biased;
