//! Matmuls by cuBLASLt, each shape by one algorithm for good.
//!
//! Another algorithm may sum in another order, so a run repeats bit for bit only with the same
//! ones: what is chosen is saved with the run ([`ChosenAlgorithms`]) and taken again when it goes
//! on. The choice itself follows a rule: the heuristic's first candidate, unless another one is
//! clearly faster on this device.
//!
//! cuBLASLt thinks in columns: our row-major C = A B is its C^T = B^T A^T over the same memory.
#![expect(
    unsafe_code,
    reason = "cuBLASLt takes addresses, which are those of the step's memory, and handles of its own"
)]
use std::collections::HashMap;
use std::ffi::{c_int, c_void};
use std::ptr::from_ref;
use std::sync::Arc;

use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys;
use cudarc::driver::CudaStream;
use cudarc::driver::sys::CUevent_flags;
use serde::{Deserialize, Serialize};

use super::error::{CudaStepError, failed};
use super::launcher::{Matmul, Output};
use super::memory::Memory;

/// Room for the parts of split sums: a part of 768 x 3072 in f32 takes 9.4 MB.
pub(super) const WORKSPACE_BYTES: usize = 256 << 20;
/// Candidates that are timed, and how often.
const CANDIDATES: usize = 32;
const TIMED: usize = 3;
/// Another candidate than the heuristic's first must need less than this share of its time. Timings
/// of one and the same algorithm differ by less, so that two runs on one device choose alike.
const CLEARLY_FASTER: f32 = 0.97;
/// Most that an address is said to be aligned to: what every weight is, so that a matmul is one
/// shape in all blocks.
const MOST_ALIGNMENT: u64 = 128;

/// All that decides which algorithm is best.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Shape {
    m: usize,
    n: usize,
    k: usize,
    strides: [usize; 2],
    transposed: [bool; 2],
    into_f32: bool,
    adds: bool,
    has_bias: bool,
    /// Bytes to whose multiples A, B and C are aligned.
    alignments: [u32; 3],
}

/// The algorithm of each matmul of a run so far. It belongs to one device and one version of
/// cuBLASLt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChosenAlgorithms {
    /// As NVIDIA calls it.
    pub device: String,
    /// Version of cuBLASLt.
    pub cublaslt: usize,
    /// In the order of the shapes.
    chosen: Vec<Chosen>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Chosen {
    #[serde(rename = "product")]
    matmul: Shape,
    /// `cublasLtMatmulAlgo_t`, which NVIDIA allows to be stored and used again with the same
    /// version.
    algorithm: [u64; 8],
}

fn alignment(address: u64) -> u32 {
    1 << address.trailing_zeros().min(MOST_ALIGNMENT.ilog2())
}

impl Shape {
    fn of(matmul: &Matmul) -> Self {
        let Matmul {
            m,
            n,
            k,
            a,
            b,
            c,
            output,
        } = *matmul;
        Self {
            m,
            n,
            k,
            strides: [a.stride, b.stride],
            transposed: [a.transposed, b.transposed],
            into_f32: !matches!(output, Output::Bf16 { .. }),
            adds: output == Output::SumF32,
            has_bias: bias(output) != 0,
            alignments: [a.address, b.address, c].map(alignment),
        }
    }

    /// Bytes of the result.
    fn result_bytes(&self) -> usize {
        self.m * self.n * if self.into_f32 { 4 } else { 2 }
    }
}

fn bias(output: Output) -> u64 {
    match output {
        Output::Bf16 { bias } | Output::F32 { bias } => bias,
        Output::SumF32 => 0,
    }
}

/// A matmul's description, and the algorithm for it.
#[derive(Debug)]
struct Plan {
    description: sys::cublasLtMatmulDesc_t,
    /// Of the right operand, the left one, the result: cuBLASLt's A, B and D.
    layouts: [sys::cublasLtMatrixLayout_t; 3],
    algorithm: Option<sys::cublasLtMatmulAlgo_t>,
}

impl Drop for Plan {
    fn drop(&mut self) {
        for layout in self.layouts {
            // SAFETY: made once, destroyed once.
            let _ = unsafe { result::destroy_matrix_layout(layout) };
        }
        // SAFETY: as above.
        let _ = unsafe { result::destroy_matmul_desc(self.description) };
    }
}

/// cuBLASLt on one stream.
#[derive(Debug)]
pub(super) struct Matmuls {
    plans: HashMap<Shape, Plan>,
    /// Of the run that goes on: taken in place of a choice.
    saved: HashMap<Shape, sys::cublasLtMatmulAlgo_t>,
    handle: sys::cublasLtHandle_t,
    workspace: Memory,
    stream: Arc<CudaStream>,
}

// SAFETY: the handle and the descriptions are bound to no thread; `&mut self` keeps two threads
// from using them at once.
unsafe impl Send for Matmuls {}

impl Drop for Matmuls {
    fn drop(&mut self) {
        self.plans.clear();
        // SAFETY: made once, destroyed once, after all that was made with it.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

fn wrong(matmul: &Matmul) -> impl Fn(CublasError) -> CudaStepError {
    let Matmul { m, n, k, .. } = *matmul;
    move |error| CudaStepError::Matmul {
        m,
        n,
        k,
        detail: error.to_string(),
    }
}

impl Matmuls {
    pub(super) fn new(stream: &Arc<CudaStream>) -> Result<Self, CudaStepError> {
        let workspace = Memory::new(stream.context(), WORKSPACE_BYTES)?;
        let handle = result::create_handle().map_err(|error| CudaStepError::Driver {
            doing: "setting cuBLASLt up",
            detail: error.to_string(),
        })?;
        Ok(Self {
            plans: HashMap::new(),
            saved: HashMap::new(),
            handle,
            workspace,
            stream: Arc::clone(stream),
        })
    }

    pub(super) fn multiply(&mut self, matmul: &Matmul) -> Result<(), CudaStepError> {
        let shape = Shape::of(matmul);
        if !self.plans.contains_key(&shape) {
            let mut plan = Plan::new(&shape).map_err(wrong(matmul))?;
            plan.algorithm = Some(match self.saved.get(&shape) {
                Some(saved) if self.serves(&plan, saved) => *saved,
                _ => self.choose(&plan, &shape, matmul)?,
            });
            self.plans.insert(shape, plan);
        }
        let plan = &self.plans[&shape];
        let algorithm = plan.algorithm.as_ref().expect("chosen when it was made");
        self.run(plan, algorithm, matmul, matmul.c)
            .map_err(wrong(matmul))
    }

    /// What was chosen so far; `device` is its name.
    pub(super) fn chosen(&self, device: &str) -> ChosenAlgorithms {
        let chosen = self.plans.iter().filter_map(|(shape, plan)| {
            Some(Chosen {
                matmul: *shape,
                algorithm: plan.algorithm?.data,
            })
        });
        let mut chosen = chosen.collect::<Vec<_>>();
        chosen.sort_unstable_by_key(|chosen| chosen.matmul);
        ChosenAlgorithms {
            device: device.to_owned(),
            cublaslt: version(),
            chosen,
        }
    }

    /// Takes over the choices of a run that goes on. Says whether all of them hold: those of
    /// another device or version do not.
    pub(super) fn take(&mut self, device: &str, saved: &ChosenAlgorithms) -> bool {
        if saved.device != device || saved.cublaslt != version() {
            return false;
        }
        let algorithms = saved.chosen.iter();
        self.saved = algorithms
            .map(|chosen| {
                let data = chosen.algorithm;
                (chosen.matmul, sys::cublasLtMatmulAlgo_t { data })
            })
            .collect();
        true
    }

    /// Whether cuBLASLt knows a saved algorithm as one for this matmul.
    fn serves(&self, plan: &Plan, algorithm: &sys::cublasLtMatmulAlgo_t) -> bool {
        let [right, left, target] = plan.layouts;
        // SAFETY: all descriptions are live; the result is a plain struct that any bytes are values
        // of.
        unsafe {
            let mut result: sys::cublasLtMatmulHeuristicResult_t = std::mem::zeroed();
            let checked = sys::cublasLtMatmulAlgoCheck(
                self.handle,
                plan.description,
                right,
                left,
                target,
                target,
                from_ref(algorithm),
                &raw mut result,
            );
            checked.result().is_ok() && result.workspaceSize <= WORKSPACE_BYTES
        }
    }

    fn run(
        &self,
        plan: &Plan,
        algorithm: &sys::cublasLtMatmulAlgo_t,
        matmul: &Matmul,
        c: u64,
    ) -> Result<(), CublasError> {
        let bias = bias(matmul.output);
        if bias != 0 {
            let attribute = sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER;
            // SAFETY: the description is live, and the attribute is an address.
            unsafe {
                result::set_matmul_desc_attribute(
                    plan.description,
                    attribute,
                    from_ref(&bias).cast(),
                    size_of::<u64>(),
                )
            }?;
        }
        let (one, beta) = (
            1.0f32,
            if matmul.output == Output::SumF32 {
                1.0
            } else {
                0.0f32
            },
        );
        let [right, left, target] = plan.layouts;
        // SAFETY: the operands, the bias and the result are parts of the step's memory, as large as
        // the layouts say; factors are f32, as the description says; the workspace is used on this
        // stream alone.
        unsafe {
            result::matmul(
                self.handle,
                plan.description,
                from_ref(&one).cast(),
                from_ref(&beta).cast(),
                matmul.b.address as *const c_void,
                right,
                matmul.a.address as *const c_void,
                left,
                c as *const c_void,
                target,
                c as *mut c_void,
                target,
                from_ref(algorithm),
                self.workspace.start as *mut c_void,
                WORKSPACE_BYTES,
                self.stream.cu_stream().cast(),
            )
        }
    }

    /// The first candidate that runs, unless another is clearly faster; timed on the real operands,
    /// into memory that is thrown away.
    fn choose(
        &self,
        plan: &Plan,
        shape: &Shape,
        matmul: &Matmul,
    ) -> Result<sys::cublasLtMatmulAlgo_t, CudaStepError> {
        let candidates = self.candidates(plan, shape).map_err(wrong(matmul))?;
        let context = self.stream.context();
        let scratch = Memory::new(context, shape.result_bytes())?;
        let event = || {
            let event = context.new_event(Some(CUevent_flags::CU_EVENT_DEFAULT));
            event.map_err(failed("making an event"))
        };
        let (start, end) = (event()?, event()?);
        let mut times = Vec::new();
        for algorithm in candidates {
            // The first run is not counted; an algorithm that fails is none.
            if self.run(plan, &algorithm, matmul, scratch.start).is_err() {
                continue;
            }
            start
                .record(&self.stream)
                .map_err(failed("recording an event"))?;
            for _ in 0..TIMED {
                self.run(plan, &algorithm, matmul, scratch.start)
                    .map_err(wrong(matmul))?;
            }
            end.record(&self.stream)
                .map_err(failed("recording an event"))?;
            let time = start.elapsed_ms(&end).map_err(failed("timing a matmul"))?;
            times.push((time, algorithm));
        }
        by_rule(&times).ok_or_else(|| CudaStepError::Matmul {
            m: matmul.m,
            n: matmul.n,
            k: matmul.k,
            detail: "cuBLASLt has no algorithm that runs".into(),
        })
    }

    fn candidates(
        &self,
        plan: &Plan,
        shape: &Shape,
    ) -> Result<Vec<sys::cublasLtMatmulAlgo_t>, CublasError> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
        let preference = Preference(result::create_matmul_pref()?);
        preference.set(
            Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
            &WORKSPACE_BYTES,
        )?;
        // Parts of a sum are added in f32, also where the result is bf16.
        let reductions =
            sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
        preference.set(
            Attribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
            &reductions,
        )?;
        // cuBLASLt's A is our B.
        let [a, b, c] = shape.alignments;
        for (attribute, alignment) in [
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, b),
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, a),
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, c),
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, c),
        ] {
            preference.set(attribute, &alignment)?;
        }
        let [right, left, target] = plan.layouts;
        // SAFETY: all descriptions are live; there is room for as many results as are asked for,
        // plain structs that any bytes are values of.
        unsafe {
            let mut results: [sys::cublasLtMatmulHeuristicResult_t; CANDIDATES] =
                std::mem::zeroed();
            let mut found: c_int = 0;
            sys::cublasLtMatmulAlgoGetHeuristic(
                self.handle,
                plan.description,
                right,
                left,
                target,
                target,
                preference.0,
                CANDIDATES as c_int,
                results.as_mut_ptr(),
                &raw mut found,
            )
            .result()?;
            let found = &results[..found as usize];
            Ok(found.iter().map(|result| result.algo).collect())
        }
    }
}

/// What an algorithm may need, and must be able to count on.
struct Preference(sys::cublasLtMatmulPreference_t);

impl Preference {
    fn set<T: Copy>(
        &self,
        attribute: sys::cublasLtMatmulPreferenceAttributes_t,
        value: &T,
    ) -> Result<(), CublasError> {
        // SAFETY: the preference is live, and the attributes set above are plain numbers of the
        // types given.
        unsafe {
            result::set_matmul_pref_attribute(
                self.0,
                attribute,
                from_ref(value).cast(),
                size_of::<T>(),
            )
        }
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: made once, destroyed once.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}

fn version() -> usize {
    // SAFETY: takes nothing.
    unsafe { sys::cublasLtGetVersion() }
}

/// The first one of those that were timed, unless another is clearly faster.
fn by_rule<A: Copy>(times: &[(f32, A)]) -> Option<A> {
    let (first, _) = *times.first()?;
    let fastest = times
        .iter()
        .min_by(|one, other| one.0.total_cmp(&other.0))?;
    let chosen = if fastest.0 < CLEARLY_FASTER * first {
        fastest
    } else {
        &times[0]
    };
    Some(chosen.1)
}

impl Plan {
    fn new(shape: &Shape) -> Result<Self, CublasError> {
        const BF16: sys::cudaDataType = sys::cudaDataType_t::CUDA_R_16BF;
        const F32: sys::cudaDataType = sys::cudaDataType_t::CUDA_R_32F;
        let Shape {
            m,
            n,
            k,
            strides: [a_stride, b_stride],
            transposed: [a_transposed, b_transposed],
            ..
        } = *shape;
        // As it lies in memory, seen in columns.
        let layout = |data, rows: usize, columns: usize, transposed: bool, stride: usize| {
            let (rows, columns) = if transposed {
                (columns, rows)
            } else {
                (rows, columns)
            };
            result::create_matrix_layout(data, rows as u64, columns as u64, stride as i64)
        };
        let result_type = if shape.into_f32 { F32 } else { BF16 };
        let plan = Self {
            description: result::create_matmul_desc(
                sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                F32,
            )?,
            layouts: [
                layout(BF16, n, k, b_transposed, b_stride)?,
                layout(BF16, k, m, a_transposed, a_stride)?,
                layout(result_type, n, m, false, n)?,
            ],
            algorithm: None,
        };
        let set = |attribute, value: i32| {
            // SAFETY: the description is live, and each of these attributes is a 32-bit number.
            unsafe {
                result::set_matmul_desc_attribute(
                    plan.description,
                    attribute,
                    from_ref(&value).cast(),
                    size_of::<i32>(),
                )
            }
        };
        for (attribute, transposed) in [
            (
                sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA,
                b_transposed,
            ),
            (
                sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSB,
                a_transposed,
            ),
        ] {
            set(attribute, i32::from(transposed))?;
        }
        if shape.has_bias {
            set(
                sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_EPILOGUE,
                sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS as i32,
            )?;
        }
        Ok(plan)
    }
}
