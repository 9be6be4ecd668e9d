//! nvJPEG's batched decoder, on the device's JPEG engines.
use std::ffi::c_int;
use std::ptr::null_mut;
use std::sync::Arc;

use nvjpeg_sys as nv;

use super::{Destination, Library, NvjpegError, State, check, check_phase, raw_stream};
use crate::backend::cuda::accelerator::CudaStreamRef;
use crate::stats::RefusalPhase;

/// The largest call, for which memory is taken beforehand.
#[derive(Debug, Clone, Copy)]
pub struct LargestCall {
    /// Images.
    pub num_images: usize,
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
}

/// Decodes many images in one call, on the device's JPEG engines. The device must be done with all
/// that it was asked for before it is dropped.
#[derive(Debug)]
pub struct BatchedDecoder {
    state: State,
    largest: LargestCall,
    /// Images for which the state is set up.
    batch_size: Option<usize>,
    has_failed: bool,
    library: Arc<Library>,
}

// SAFETY: as for `DecoupledDecoder`.
unsafe impl Send for BatchedDecoder {}

impl BatchedDecoder {
    /// A decoder of the handle's default backend to interleaved RGB.
    pub fn new(library: &Arc<Library>, largest: LargestCall) -> Result<Self, NvjpegError> {
        Ok(Self {
            state: Self::state(library, largest)?,
            largest,
            batch_size: None,
            has_failed: false,
            library: Arc::clone(library),
        })
    }

    fn state(library: &Arc<Library>, largest: LargestCall) -> Result<State, NvjpegError> {
        let mut state = null_mut();
        // SAFETY: the handle is live; a place for one pointer.
        let state = unsafe {
            check(
                nv::nvjpegJpegStateCreate(library.handle, &raw mut state),
                "make a state",
            )?;
            State(state)
        };
        // SAFETY: handle and state are live, and the state has no work yet.
        let reserved = check(
            unsafe {
                nv::nvjpegDecodeBatchedPreAllocate(
                    library.handle,
                    state.0,
                    largest.num_images as c_int,
                    largest.width as c_int,
                    largest.height as c_int,
                    nv::nvjpegChromaSubsampling_t_NVJPEG_CSS_444,
                    nv::nvjpegOutputFormat_t_NVJPEG_OUTPUT_RGBI,
                )
            },
            "take the memory of the largest call beforehand",
        );
        if let Err(error) = reserved {
            // NVIDIA calls it a hint: without it the first calls are slower.
            tracing::info!("{error}; it is taken as calls need it");
        }
        Ok(state)
    }

    /// Whether a call of so many images needs no [`Self::set_up`].
    #[must_use]
    pub fn is_set_up_for(&self, batch_size: usize) -> bool {
        self.batch_size == Some(batch_size)
    }

    /// Sets the state up for calls of so many images; after a failed call with a new state, as what
    /// such a call leaves behind is not said anywhere.
    ///
    /// # Safety
    ///
    /// The device is done with all that this decoder was asked for.
    pub unsafe fn set_up(&mut self, batch_size: usize) -> Result<(), NvjpegError> {
        self.batch_size = None;
        if self.has_failed {
            self.state = Self::state(&self.library, self.largest)?;
            self.has_failed = false;
        }
        // SAFETY: handle and state are live and not in use. One host thread: the engines need none.
        let set_up = check_phase(
            unsafe {
                nv::nvjpegDecodeBatchedInitialize(
                    self.library.handle,
                    self.state.0,
                    batch_size as c_int,
                    1,
                    nv::nvjpegOutputFormat_t_NVJPEG_OUTPUT_RGBI,
                )
            },
            RefusalPhase::Batch,
            "set up a batch",
        );
        self.has_failed = set_up.is_err();
        set_up?;
        self.batch_size = Some(batch_size);
        Ok(())
    }

    /// Enqueues the decoding of all files. After an error nothing of them may be used, and the
    /// caller waits for the stream and sets the state up again.
    ///
    /// # Safety
    ///
    /// The state is set up for so many images, and the device is done with the call before. The
    /// destinations are device memory for the whole images, which nothing on the device uses any
    /// more: the engines may write when they are called and not in the stream's order. Destinations
    /// and files stay until the stream has done this.
    pub unsafe fn decode(
        &mut self,
        files: &[&[u8]],
        destinations: &[Destination],
        stream: &CudaStreamRef,
    ) -> Result<(), NvjpegError> {
        assert_eq!(files.len(), destinations.len());
        assert!(self.is_set_up_for(files.len()), "a call of another size");
        let starts = files.iter().map(|file| file.as_ptr()).collect::<Vec<_>>();
        let lengths = files.iter().map(|file| file.len()).collect::<Vec<_>>();
        let mut images = destinations
            .iter()
            .map(|destination| destination.raw())
            .collect::<Vec<_>>();
        // SAFETY: three arrays of the length that the state was set up for; the caller answers for
        // what they point to.
        let decoded = check_phase(
            unsafe {
                nv::nvjpegDecodeBatched(
                    self.library.handle,
                    self.state.0,
                    starts.as_ptr(),
                    lengths.as_ptr(),
                    images.as_mut_ptr(),
                    raw_stream(stream),
                )
            },
            RefusalPhase::Batch,
            "decode a batch",
        );
        if decoded.is_err() {
            (self.batch_size, self.has_failed) = (None, true);
        }
        decoded
    }
}
