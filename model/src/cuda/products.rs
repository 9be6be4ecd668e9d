//! Matrix products by cuBLASLt: for each shape the candidates of its heuristic are timed once, and the fastest is kept.
//!
//! cuBLASLt thinks in columns: our row-major C = A B is its C^T = B^T A^T over the same memory.
use std::collections::HashMap;
use std::ffi::{c_int, c_void};
use std::ptr::from_ref;
use std::sync::Arc;

use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys;
use cudarc::driver::CudaStream;
use cudarc::driver::sys::CUevent_flags;

use super::{CudaStepError, Memory, failed};
use crate::kernel_step::{Output, Product};

/// NVIDIA's advice for Hopper.
const WORKSPACE_BYTES: usize = 32 << 20;
/// Candidates that are timed, and how often.
const CANDIDATES: usize = 8;
const TIMED: usize = 3;

/// All that decides which algorithm is best.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Shape {
    m: usize,
    n: usize,
    k: usize,
    strides: [usize; 2],
    transposed: [bool; 2],
    into_f32: bool,
    adds: bool,
    has_bias: bool,
}

impl Shape {
    fn of(product: &Product) -> Self {
        let Product {
            m,
            n,
            k,
            a,
            b,
            output,
            ..
        } = *product;
        Self {
            m,
            n,
            k,
            strides: [a.stride, b.stride],
            transposed: [a.transposed, b.transposed],
            into_f32: !matches!(output, Output::Bf16 { .. }),
            adds: output == Output::SumF32,
            has_bias: bias(output) != 0,
        }
    }
}

fn bias(output: Output) -> u64 {
    match output {
        Output::Bf16 { bias } | Output::F32 { bias } => bias,
        Output::SumF32 => 0,
    }
}

/// A product's description, and the algorithm for it.
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
pub(super) struct Products {
    plans: HashMap<Shape, Plan>,
    handle: sys::cublasLtHandle_t,
    workspace: Memory,
    stream: Arc<CudaStream>,
}

// SAFETY: the handle and the descriptions are bound to no thread; `&mut self` keeps two threads from using them at once.
unsafe impl Send for Products {}

impl Drop for Products {
    fn drop(&mut self) {
        self.plans.clear();
        // SAFETY: made once, destroyed once, after all that was made with it.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

fn wrong(product: &Product) -> impl Fn(CublasError) -> CudaStepError {
    let Product { m, n, k, .. } = *product;
    move |error| CudaStepError::Product {
        m,
        n,
        k,
        detail: error.to_string(),
    }
}

impl Products {
    pub(super) fn new(stream: &Arc<CudaStream>) -> Result<Self, CudaStepError> {
        let workspace = Memory::new(stream.context(), WORKSPACE_BYTES)?;
        let handle = result::create_handle().map_err(|error| CudaStepError::Driver {
            doing: "setting cuBLASLt up",
            detail: error.to_string(),
        })?;
        Ok(Self {
            plans: HashMap::new(),
            handle,
            workspace,
            stream: Arc::clone(stream),
        })
    }

    pub(super) fn multiply(&mut self, product: &Product) -> Result<(), CudaStepError> {
        let shape = Shape::of(product);
        if !self.plans.contains_key(&shape) {
            let mut plan = Plan::new(&shape).map_err(wrong(product))?;
            plan.algorithm = Some(self.fastest(&plan, product)?);
            self.plans.insert(shape, plan);
        }
        let plan = &self.plans[&shape];
        let algorithm = plan.algorithm.as_ref().expect("chosen when it was made");
        self.run(plan, algorithm, product, product.c)
            .map_err(wrong(product))
    }

    fn run(
        &self,
        plan: &Plan,
        algorithm: &sys::cublasLtMatmulAlgo_t,
        product: &Product,
        c: u64,
    ) -> Result<(), CublasError> {
        let bias = bias(product.output);
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
            if product.output == Output::SumF32 {
                1.0
            } else {
                0.0f32
            },
        );
        let [right, left, target] = plan.layouts;
        // SAFETY: the operands, the bias and the result are parts of the step's memory, as large as the layouts say; factors are f32, as the
        // description says; the workspace is used on this stream alone.
        unsafe {
            result::matmul(
                self.handle,
                plan.description,
                from_ref(&one).cast(),
                from_ref(&beta).cast(),
                product.b.address as *const c_void,
                right,
                product.a.address as *const c_void,
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

    /// Times the candidates, on the real operands but into memory that is thrown away.
    fn fastest(
        &self,
        plan: &Plan,
        product: &Product,
    ) -> Result<sys::cublasLtMatmulAlgo_t, CudaStepError> {
        let candidates = self.candidates(plan).map_err(wrong(product))?;
        let value_bytes = if Shape::of(product).into_f32 { 4 } else { 2 };
        let context = self.stream.context();
        let scratch = Memory::new(context, product.m * product.n * value_bytes)?;
        let event = || {
            let event = context.new_event(Some(CUevent_flags::CU_EVENT_DEFAULT));
            event.map_err(failed("making an event"))
        };
        let (start, end) = (event()?, event()?);
        let mut best: Option<(f32, sys::cublasLtMatmulAlgo_t)> = None;
        for algorithm in candidates {
            // The first run is not counted; an algorithm that fails is none.
            if self.run(plan, &algorithm, product, scratch.start).is_err() {
                continue;
            }
            start
                .record(&self.stream)
                .map_err(failed("recording an event"))?;
            for _ in 0..TIMED {
                self.run(plan, &algorithm, product, scratch.start)
                    .map_err(wrong(product))?;
            }
            end.record(&self.stream)
                .map_err(failed("recording an event"))?;
            let time = start.elapsed_ms(&end).map_err(failed("timing a product"))?;
            if best.is_none_or(|(least, _)| time < least) {
                best = Some((time, algorithm));
            }
        }
        best.map(|(_, algorithm)| algorithm)
            .ok_or_else(|| CudaStepError::Product {
                m: product.m,
                n: product.n,
                k: product.k,
                detail: "cuBLASLt has no algorithm that runs".into(),
            })
    }

    fn candidates(&self, plan: &Plan) -> Result<Vec<sys::cublasLtMatmulAlgo_t>, CublasError> {
        let preference = result::create_matmul_pref()?;
        let attribute =
            sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
        let [right, left, target] = plan.layouts;
        // SAFETY: all descriptions are live; there is room for as many results as are asked for, plain structs that any bytes are values of.
        unsafe {
            let mut results: [sys::cublasLtMatmulHeuristicResult_t; CANDIDATES] =
                std::mem::zeroed();
            let mut found: c_int = 0;
            let asked = result::set_matmul_pref_attribute(
                preference,
                attribute,
                from_ref(&WORKSPACE_BYTES).cast(),
                size_of::<usize>(),
            )
            .and_then(|()| {
                sys::cublasLtMatmulAlgoGetHeuristic(
                    self.handle,
                    plan.description,
                    right,
                    left,
                    target,
                    target,
                    preference,
                    CANDIDATES as c_int,
                    results.as_mut_ptr(),
                    &raw mut found,
                )
                .result()
            });
            result::destroy_matmul_pref(preference)?;
            asked?;
            let found = &results[..found as usize];
            Ok(found.iter().map(|result| result.algo).collect())
        }
    }
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
