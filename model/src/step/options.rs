//! What a step is made for, what one pass of it needs, and the sizes that follow.
use crate::rotary::RopeDraw;
use crate::{ModelError, NepaConfig};

/// What of the forward pass is kept for the backward pass, beside what cannot be made again in one
/// pass over memory. No result depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// The results of norms, `2 N D` narrow values a block; else the backward writes them again.
    pub norms: bool,
    /// The activations of MLPs, `[N, mlp]` narrow values a block: 4.8 GB in bf16 for B/14 with 256
    /// images; else the backward writes them again.
    pub activations: bool,
}

/// What a step is made for.
#[derive(Debug, Clone, PartialEq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is one independent choice"
)]
pub struct StepOptions {
    /// Most images of one forward and backward pass.
    pub images: usize,
    /// Rows and columns of patches of an image; none are those of the model's square images.
    pub grid: Option<[usize; 2]>,
    /// Whether a token sees itself and those before only.
    pub causal: bool,
    /// Whether the last patch is no token. Under a causal mask no other token sees it, so a loss
    /// that ignores its output is the same without it.
    pub without_last: bool,
    /// Only so many patches of each image are tokens (masked autoencoders, arXiv 2111.06377);
    /// [`Pass::kept`] says which.
    pub kept_patches: Option<usize>,
    /// Whether branches may be dropped; [`Pass::drop_path`] says which.
    pub drop_path: bool,
    /// Whether there is a backward pass.
    pub trains: bool,
    /// What of the forward pass is kept; none is what the device prefers.
    pub kept: Option<Kept>,
    /// Gradients of the same size beside the first, for sums of some micro-batches
    /// ([`super::SumTree::partial_sums`]).
    pub partial_sums: usize,
}

impl StepOptions {
    /// All tokens, with the model's own mask.
    pub fn whole(config: &NepaConfig, images: usize) -> Self {
        Self {
            images,
            grid: None,
            causal: config.is_causal,
            without_last: false,
            kept_patches: None,
            drop_path: false,
            trains: true,
            kept: None,
            partial_sums: 0,
        }
    }

    /// NEPA's pretraining.
    pub fn pretraining(config: &NepaConfig, images: usize) -> Self {
        Self {
            without_last: config.is_causal,
            ..Self::whole(config, images)
        }
    }

    /// What the model is made for: all tokens of a classifier, else NEPA's pretraining; dropping
    /// branches where the model does.
    pub fn training(config: &NepaConfig, images: usize) -> Self {
        let options = if config.is_classifier() {
            Self::whole(config, images)
        } else {
            Self::pretraining(config, images)
        };
        Self {
            drop_path: config.drop_path_prob > 0.0,
            ..options
        }
    }

    /// All tokens, forward only.
    pub fn inference(config: &NepaConfig, images: usize, causal: bool) -> Self {
        Self {
            causal,
            trains: false,
            ..Self::whole(config, images)
        }
    }

    /// Whether the options fit each other and the model.
    pub(super) fn check(&self, config: &NepaConfig) -> Result<(), ModelError> {
        let refused = |reason| Err(ModelError::Step { reason });
        let shape = Shape::new(config, self);
        if config.use_mask_token {
            return refused("it masks no patches: the engine \"autograd\" does");
        }
        if self.images == 0 || shape.patches == 0 {
            return refused("it is made for no image, or for images of no patch");
        }
        if self.without_last && !self.causal {
            return refused("without the causal mask, every token sees the last patch");
        }
        let most = shape.patches - usize::from(self.without_last);
        if self
            .kept_patches
            .is_some_and(|kept| kept == 0 || kept > most)
        {
            return refused("it keeps no patch of an image, or more than there are");
        }
        Ok(())
    }
}

/// What one forward pass needs beside its images. The default changes nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pass<'a> {
    /// Factors of the rotary coordinates.
    pub rope: RopeDraw,
    /// For each image in order the patches that are its tokens, as many as
    /// [`StepOptions::kept_patches`] says.
    pub kept: Option<&'a [u32]>,
    /// A factor for each image of each branch, `[blocks, 2, B]`: attention, then MLP. Stochastic
    /// depth (arXiv 1603.09382) makes some of them 0 and the others 1 / (1 - rate).
    pub drop_path: Option<&'a [f32]>,
}

impl Pass<'_> {
    /// A pass with that draw.
    pub fn of(rope: &RopeDraw) -> Self {
        Self {
            rope: *rope,
            ..Self::default()
        }
    }
}

/// For each patch of each image its token, or 0 where it is none, of [`Pass::kept`]. Panics if there
/// is no such patch.
pub fn tokens_of_patches(kept: &[u32], kept_an_image: usize, patches: usize) -> Vec<u32> {
    let mut tokens = vec![0; kept.len() / kept_an_image * patches];
    let images = tokens.chunks_exact_mut(patches);
    for (of_image, kept) in images.zip(kept.chunks_exact(kept_an_image)) {
        for (token, patch) in (1..).zip(kept) {
            of_image[*patch as usize] = token;
        }
    }
    tokens
}

/// Sizes of a pass.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    /// B.
    pub(crate) images: usize,
    /// Rows and columns of patches.
    pub(crate) grid: [usize; 2],
    /// P.
    pub(crate) patches: usize,
    /// T.
    pub(crate) tokens: usize,
    /// D.
    pub(crate) width: usize,
    /// H.
    pub(crate) heads: usize,
    /// Width of the MLP.
    pub(crate) mlp: usize,
    /// Width of what the first layer of the MLP makes: twice `mlp` if it is gated.
    pub(crate) up: usize,
    /// Blocks.
    pub(crate) blocks: usize,
}

impl Shape {
    pub(crate) fn new(config: &NepaConfig, options: &StepOptions) -> Self {
        let grid = options.grid.unwrap_or([config.patches_per_side(); 2]);
        let patches = grid[0] * grid[1];
        let all = patches + 1 - usize::from(options.without_last);
        Self {
            images: options.images,
            grid,
            patches,
            tokens: options.kept_patches.map_or(all, |kept| kept + 1),
            width: config.hidden_size,
            heads: config.num_attention_heads,
            mlp: config.intermediate_size,
            up: config.intermediate_size * if config.use_gated_mlp { 2 } else { 1 },
            blocks: config.num_hidden_layers,
        }
    }

    /// Rows N of a token matrix.
    pub(crate) fn rows(&self) -> usize {
        self.images * self.tokens
    }

    /// Width d of a head.
    pub(crate) fn head_size(&self) -> usize {
        self.width / self.heads
    }
}
