//! The order in which the gradients of micro-batches are added: a balanced binary tree over all of
//! them, halved while their number is even. What stays odd is added from the left.
//!
//! So the sum over any half, quarter, ... of the micro-batches is a node of the tree, and several
//! processes that take one each, whose sums are added in pairs, get the bits that one process gets.
//! As they come one after the other, a stack of few sums suffices.

/// The tree over so many micro-batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SumTree {
    count: usize,
    /// Micro-batches of a leaf, an odd number.
    leaf: usize,
}

impl SumTree {
    /// Panics without a micro-batch.
    pub fn new(count: usize) -> Self {
        assert!(count > 0, "a step has a micro-batch");
        Self {
            count,
            leaf: count >> count.trailing_zeros(),
        }
    }

    /// All micro-batches.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Sums that are held beside the first one, at the most.
    pub fn partial_sums(&self) -> usize {
        self.count.trailing_zeros() as usize + usize::from(self.leaf > 1)
    }

    /// Sums that lie on the stack before a micro-batch, whose gradient goes on top of them.
    pub fn before(&self, number: usize) -> usize {
        let (leaf, position) = (number / self.leaf, number % self.leaf);
        leaf.count_ones() as usize + usize::from(position > 0)
    }

    /// How often the two on top of the stack are added after a micro-batch.
    pub fn additions(&self, number: usize) -> usize {
        let (leaf, position) = (number / self.leaf, number % self.leaf);
        let within = usize::from(position > 0);
        if position + 1 < self.leaf {
            within
        } else {
            within + (leaf + 1).trailing_zeros() as usize
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The tree itself, written down as it is said.
    fn naive(values: &[f32]) -> f32 {
        if values.len().is_multiple_of(2) {
            let (left, right) = values.split_at(values.len() / 2);
            return naive(left) + naive(right);
        }
        let (first, rest) = values.split_first().expect("a value");
        rest.iter().fold(*first, |sum, value| sum + value)
    }

    /// By a stack, which may hold as many sums as the tree says.
    fn stacked(values: &[f32]) -> f32 {
        let tree = SumTree::new(values.len());
        let mut stack: Vec<f32> = Vec::new();
        let mut most = 0;
        for (number, value) in values.iter().enumerate() {
            assert_eq!(
                stack.len(),
                tree.before(number),
                "{number} of {}",
                values.len()
            );
            stack.push(*value);
            most = most.max(stack.len());
            for _ in 0..tree.additions(number) {
                let top = stack.pop().expect("two sums");
                *stack.last_mut().expect("two sums") += top;
            }
        }
        assert_eq!(stack.len(), 1);
        assert_eq!(most, 1 + tree.partial_sums(), "of {}", values.len());
        let log2 = (values.len() as f64).log2();
        assert!(most as f64 <= log2 + 1.0, "{most} of {}", values.len());
        stack[0]
    }

    #[test]
    fn a_stack_adds_in_the_order_of_the_tree() {
        let value = |i: usize| {
            let number = (i as u32 + 7).wrapping_mul(2_654_435_761);
            (number >> 8) as f32 * 10f32.powi((number % 11) as i32 - 9) * [1.0, -1.0][i % 2]
        };
        let mut differ = 0;
        for count in 1..=130 {
            let values = (0..count).map(value).collect::<Vec<_>>();
            assert_eq!(stacked(&values).to_bits(), naive(&values).to_bits());
            let folded = values.iter().fold(0.0, |sum, value| sum + value);
            differ += usize::from(folded.to_bits() != naive(&values).to_bits());
            // Halves, quarters, ... added in pairs.
            let mut parts = 2;
            while count.is_multiple_of(parts) {
                let of_parts = values.chunks_exact(count / parts).map(stacked);
                let of_parts = of_parts.collect::<Vec<_>>();
                assert_eq!(naive(&of_parts).to_bits(), naive(&values).to_bits());
                parts *= 2;
            }
        }
        assert!(differ > 40, "the order decides nothing here: {differ}");
    }

    #[test]
    fn one_micro_batch_needs_no_more_memory() {
        let partial_sums = |count| SumTree::new(count).partial_sums();
        assert_eq!(
            [1, 2, 3, 4, 6, 8, 16].map(partial_sums),
            [0, 1, 1, 2, 2, 3, 4]
        );
    }
}
