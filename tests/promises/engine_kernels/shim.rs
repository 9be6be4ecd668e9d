//! What the shim does with a warp.
use nepa_tests::engine_kernels::shim::{multiply, shuffle_in_a_branch};
use nepa_tests::engine_kernels::twins::Sum;
use nepa_tests::kernels::message_of_abort;

use super::{Random, Wide, assert_sums, launched};

#[test]
fn a_warp_multiplies_matrices() {
    let mut random = Random(51);
    for _ in 0..4 {
        let a = random.bf16s(256, 1.0).try_into().unwrap();
        let b = random.bf16s(128, 1.0).try_into().unwrap();
        let got = launched(|launch| multiply(launch, &a, &b, false));
        assert_eq!(launched(|launch| multiply(launch, &a, &b, true)), got);
        let (a, b) = (a.wide(), b.wide());
        let mut expected = vec![Sum::default(); 128];
        for (i, sum) in expected.iter_mut().enumerate() {
            for k in 0..16 {
                sum.add(a[i / 8 * 16 + k] * b[k * 8 + i % 8]);
            }
        }
        assert_sums("product", &got, &expected, 0.0);
    }
}

#[test]
fn the_shim_aborts_where_not_all_threads_of_a_warp_shuffle() {
    let said = message_of_abort("NEPA_TEST_SHUFFLE_IN_A_BRANCH", shuffle_in_a_branch);
    // The first warp is whole.
    assert!(
        said.contains("cuda_cpu_shim: thread (40, 0, 0) of block (0, 0, 0) returned, but thread (32, 0, 0) waits for its warp in line"),
        "{said}"
    );
}
