//! A device in ordinary memory that finds work in the wrong order.
//!
//! Every operation is done at once, and checked as if streams ran at their own pace: each stream and each thread has a vector
//! clock, events carry clocks, and two uses of overlapping memory, one of them a write, must be ordered by them. What is not
//! ordered is kept as a violation, whatever the timing of this run was.
use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::ThreadId;

use nepa_pipeline::{Accelerator, BackendError, Normalize, PixelType, Target};

/// How far each stream and thread had come, by number.
type Clock = HashMap<usize, u64>;

fn merge(into: &mut Clock, other: &Clock) {
    for (&agent, &time) in other {
        let known = into.entry(agent).or_default();
        *known = time.max(*known);
    }
}

/// One use of memory.
#[derive(Debug, Clone)]
struct Use {
    agent: usize,
    time: u64,
    range: Range<usize>,
    writes: bool,
    what: &'static str,
}

#[derive(Debug, Default)]
struct World {
    clocks: HashMap<usize, Clock>,
    threads: HashMap<ThreadId, usize>,
    violations: Vec<String>,
}

impl World {
    /// The number of this thread.
    fn host(&mut self, next: &AtomicUsize) -> usize {
        *self
            .threads
            .entry(std::thread::current().id())
            .or_insert_with(|| next.fetch_add(1, Ordering::Relaxed))
    }
}

/// The device.
#[derive(Debug, Default)]
pub struct FakeDevice {
    world: Mutex<World>,
    next_agent: AtomicUsize,
    allocations: AtomicUsize,
    waits: AtomicUsize,
    /// Times that the end of all work was marked.
    marks_of_all: AtomicUsize,
    /// A planted bug: streams do not wait for events.
    pub ignores_waits: AtomicBool,
    /// Normalisation of converted crops.
    pub normalize: Normalize,
}

/// A queue of work.
#[derive(Debug, Clone, Copy)]
pub struct FakeStream(usize);

/// A point in a stream.
#[derive(Debug, Default)]
pub struct FakeEvent(Mutex<Clock>);

/// Memory with the uses that were made of it.
#[derive(Debug, Default)]
pub struct FakeMemory {
    bytes: Mutex<Vec<u8>>,
    uses: Mutex<Vec<Use>>,
}

/// Host memory that the device reads.
#[derive(Debug)]
pub struct FakePinned {
    device: Arc<FakeDevice>,
    memory: FakeMemory,
    bytes: Vec<u8>,
}

impl AsMut<[u8]> for FakePinned {
    fn as_mut(&mut self) -> &mut [u8] {
        let range = 0..self.bytes.len();
        self.device
            .use_from_host(&self.memory, range, true, "writing pinned memory");
        &mut self.bytes
    }
}

impl FakeDevice {
    /// What was not ordered.
    pub fn violations(&self) -> Vec<String> {
        self.world.lock().unwrap().violations.clone()
    }

    /// Streams, events and pieces of memory made so far.
    pub fn allocations(&self) -> usize {
        self.allocations.load(Ordering::Relaxed)
    }

    /// Times that a stream was told to wait for an event.
    pub fn waits(&self) -> usize {
        self.waits.load(Ordering::Relaxed)
    }

    /// Times that the end of all work on the device was marked.
    pub fn marks_of_all(&self) -> usize {
        self.marks_of_all.load(Ordering::Relaxed)
    }

    fn agent(&self) -> usize {
        self.next_agent.fetch_add(1, Ordering::Relaxed)
    }

    fn use_from_host(
        &self,
        memory: &FakeMemory,
        range: Range<usize>,
        writes: bool,
        what: &'static str,
    ) {
        let agent = self.world.lock().unwrap().host(&self.next_agent);
        self.use_memory(agent, memory, range, writes, what);
    }

    /// Work on a stream comes after all that its thread knew when it was enqueued.
    fn enqueue(
        &self,
        stream: FakeStream,
        memory: &FakeMemory,
        range: Range<usize>,
        writes: bool,
        what: &'static str,
    ) {
        {
            let mut world = self.world.lock().unwrap();
            let host = world.host(&self.next_agent);
            let known = world.clocks.entry(host).or_default().clone();
            merge(world.clocks.entry(stream.0).or_default(), &known);
        }
        self.use_memory(stream.0, memory, range, writes, what);
    }

    fn use_memory(
        &self,
        agent: usize,
        memory: &FakeMemory,
        range: Range<usize>,
        writes: bool,
        what: &'static str,
    ) {
        let mut world = self.world.lock().unwrap();
        let clock = world.clocks.entry(agent).or_default();
        let time = clock.entry(agent).or_default();
        *time += 1;
        let now = Use {
            agent,
            time: *time,
            range,
            writes,
            what,
        };
        let clock = clock.clone();
        let mut uses = memory.uses.lock().unwrap();
        for earlier in uses.iter() {
            let overlaps =
                earlier.range.start < now.range.end && now.range.start < earlier.range.end;
            let known = clock
                .get(&earlier.agent)
                .is_some_and(|known| *known >= earlier.time);
            if overlaps && (earlier.writes || now.writes) && !known {
                world.violations.push(format!(
                    "{} (agent {}) is not ordered after {} (agent {})",
                    now.what, now.agent, earlier.what, earlier.agent
                ));
            }
        }
        // An ordered write stands for all that it came after.
        if now.writes {
            uses.retain(|earlier| {
                !(now.range.start <= earlier.range.start && earlier.range.end <= now.range.end)
            });
        }
        uses.push(now);
    }

    /// Reads memory as the consumer's work on `stream`.
    pub fn read(&self, memory: &FakeMemory, range: Range<usize>, stream: FakeStream) -> Vec<u8> {
        self.enqueue(stream, memory, range.clone(), false, "the consumer's read");
        memory.bytes.lock().unwrap()[range].to_vec()
    }

    /// Writes a slot as work on its stream (an engine that stands in for one of the device's).
    pub fn write(&self, target: &Target<'_, FakeHandle>, crop: &[u8]) {
        let bytes = self.normalized(crop, target);
        let range = target.offset_bytes..target.offset_bytes + bytes.len();
        let stream = *target.stream;
        self.enqueue(stream, target.memory, range.clone(), true, "writing a slot");
        target.memory.bytes.lock().unwrap()[range].copy_from_slice(&bytes);
    }

    fn normalized(&self, crop: &[u8], target: &Target<'_, FakeHandle>) -> Vec<u8> {
        let layout = target.layout;
        assert_eq!(
            (layout.pixel_type, layout.patch_size),
            (PixelType::F32, None)
        );
        let pixels = crop.len() / 3;
        let value = |i: usize| {
            let (channel, pixel) = (i / pixels, i % pixels);
            let value = f32::from(crop[pixel * 3 + channel]) / 255.0;
            (value - self.normalize.mean[channel]) / self.normalize.std[channel]
        };
        (0..crop.len())
            .flat_map(|i| value(i).to_le_bytes())
            .collect()
    }
}

/// The device, shared with the memory that it hands out.
#[derive(Debug)]
pub struct FakeHandle(pub Arc<FakeDevice>);

impl FakeHandle {
    /// A device on which nothing has happened.
    pub fn new() -> Arc<Self> {
        Arc::new(Self(Arc::default()))
    }

    fn made(&self) {
        self.0.allocations.fetch_add(1, Ordering::Relaxed);
    }
}

impl Accelerator for FakeHandle {
    type Stream = FakeStream;
    type Event = FakeEvent;
    type Pinned = FakePinned;
    type Memory = FakeMemory;

    fn stream(&self) -> Result<FakeStream, BackendError> {
        self.made();
        Ok(FakeStream(self.0.agent()))
    }

    fn event(&self) -> Result<FakeEvent, BackendError> {
        self.made();
        Ok(FakeEvent::default())
    }

    fn pinned(&self, num_bytes: usize) -> Result<FakePinned, BackendError> {
        self.made();
        Ok(FakePinned {
            device: Arc::clone(&self.0),
            memory: FakeMemory::default(),
            bytes: vec![0; num_bytes],
        })
    }

    fn memory(&self, num_bytes: usize) -> Result<FakeMemory, BackendError> {
        self.made();
        Ok(FakeMemory {
            bytes: Mutex::new(vec![0; num_bytes]),
            uses: Mutex::default(),
        })
    }

    fn upload(
        &self,
        from: &FakePinned,
        to: &FakeMemory,
        stream: &FakeStream,
    ) -> Result<(), BackendError> {
        let range = 0..from.bytes.len();
        self.0.enqueue(
            *stream,
            &from.memory,
            range.clone(),
            false,
            "a copy from pinned memory",
        );
        self.0
            .enqueue(*stream, to, range.clone(), true, "a copy to the device");
        to.bytes.lock().unwrap()[range].copy_from_slice(&from.bytes);
        Ok(())
    }

    fn place(&self, from: &FakePinned, target: &Target<'_, Self>) -> Result<(), BackendError> {
        let length = from.bytes.len();
        assert_eq!(length, target.layout.slot_bytes());
        let stream = *target.stream;
        let what = "a copy from pinned memory";
        self.0.enqueue(stream, &from.memory, 0..length, false, what);
        let slot = target.offset_bytes..target.offset_bytes + length;
        self.0.enqueue(
            stream,
            target.memory,
            slot.clone(),
            true,
            "a copy into a slot",
        );
        target.memory.bytes.lock().unwrap()[slot].copy_from_slice(&from.bytes);
        Ok(())
    }

    fn convert(&self, crop: &FakeMemory, target: &Target<'_, Self>) -> Result<(), BackendError> {
        let num_bytes = 3 * (target.layout.image_size as usize).pow(2);
        let (stream, range) = (*target.stream, 0..num_bytes);
        self.0
            .enqueue(stream, crop, range, false, "converting a crop");
        let crop = crop.bytes.lock().unwrap()[..num_bytes].to_vec();
        self.0.write(target, &crop);
        Ok(())
    }

    fn record(&self, event: &FakeEvent, stream: &FakeStream) -> Result<(), BackendError> {
        let mut world = self.0.world.lock().unwrap();
        let host = world.host(&self.0.next_agent);
        let known = world.clocks.entry(host).or_default().clone();
        let clock = world.clocks.entry(stream.0).or_default();
        merge(clock, &known);
        event.0.lock().unwrap().clone_from(clock);
        Ok(())
    }

    fn record_all(&self, event: &FakeEvent) -> Result<(), BackendError> {
        self.0.marks_of_all.fetch_add(1, Ordering::Relaxed);
        let world = self.0.world.lock().unwrap();
        let mut all = Clock::new();
        for (agent, clock) in &world.clocks {
            // What threads have done is no work of the device's.
            if !world.threads.values().any(|thread| thread == agent) {
                merge(&mut all, clock);
            }
        }
        *event.0.lock().unwrap() = all;
        Ok(())
    }

    fn wait(&self, stream: &FakeStream, event: &FakeEvent) -> Result<(), BackendError> {
        self.0.waits.fetch_add(1, Ordering::Relaxed);
        if !self.0.ignores_waits.load(Ordering::Relaxed) {
            let mut world = self.0.world.lock().unwrap();
            merge(
                world.clocks.entry(stream.0).or_default(),
                &event.0.lock().unwrap(),
            );
        }
        Ok(())
    }

    fn synchronize(&self, event: &FakeEvent) -> Result<(), BackendError> {
        let mut world = self.0.world.lock().unwrap();
        let host = world.host(&self.0.next_agent);
        merge(
            world.clocks.entry(host).or_default(),
            &event.0.lock().unwrap(),
        );
        Ok(())
    }
}
