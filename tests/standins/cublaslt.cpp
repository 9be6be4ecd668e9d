// Stands in for cuBLASLt, libcublasLt.so.13: products D = op(A) op(B) + beta C of matrices that lie column by column, as NVIDIA's documentation defines
// them, with the checks that it states. Six algorithms that sum in different orders, so that another choice shows in the bits; one always refuses, one
// wants more workspace than most callers give.
#include "standin.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <memory>
#include <vector>

namespace {

// As cublasStatus_t names them.
enum Status { SUCCESS = 0, NOT_INITIALIZED = 1, INVALID_VALUE = 7, NOT_SUPPORTED = 15 };

constexpr int F32 = 0, BF16 = 14, COMPUTE_32F = 68;
constexpr int EPILOGUE_DEFAULT = 1, EPILOGUE_BIAS = 4;

// Every object begins with a word that says what it is, and that it lives.
template <uint32_t kind> struct Object {
    uint32_t live = kind;
};

struct Handle : Object<0x4c544831> {};

struct Description : Object<0x4c544432> {
    int compute = 0, scale = 0, epilogue = EPILOGUE_DEFAULT;
    bool transposed_a = false, transposed_b = false;
    uint64_t bias = 0;
};

struct Layout : Object<0x4c544c33> {
    int type = 0;
    uint64_t rows = 0, columns = 0;
    int64_t leading = 0;

    size_t value_bytes() const { return type == F32 ? 4 : 2; }
    size_t num_bytes() const { return ((columns - 1) * leading + rows) * value_bytes(); }
};

struct Preference : Object<0x4c545034> {
    uint64_t workspace_bytes = 0;
    uint32_t reductions = ~0u;
    // Of A, B, C, D.
    uint32_t alignments[4] = {256, 256, 256, 256};
};

// cublasLtMatmulAlgo_t.
struct Algorithm {
    uint64_t words[8];
};

// cublasLtMatmulHeuristicResult_t.
struct Found {
    Algorithm algorithm;
    size_t workspace_bytes;
    int state;
    float waves;
    int reserved[4];
};

// What an algorithm is: into how many parts it splits its sums (which then pass through the workspace), and what it needs.
struct Kind {
    unsigned parts;
    size_t workspace_bytes;
    uint32_t least_alignment;
    bool refuses;
};

constexpr uint64_t SIGNATURE = 0x6e65706100000000;
constexpr Kind KINDS[] = {
    {1, 0, 16, false}, {2, 2 << 20, 16, false}, {1, 0, 16, true}, {4, 9 << 20, 16, false}, {1, 1 << 20, 256, false}, {8, 1 << 30, 16, false},
};
constexpr size_t NUM_KINDS = sizeof KINDS / sizeof *KINDS;
// CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE: parts are added in f32.
constexpr uint32_t REDUCTION_COMPUTE_TYPE = 2;

template <typename Kind> const Kind *alive(const Kind *object, const char *function) {
    if (object == nullptr || object->live != Kind().live) {
        standin_violation("%s: an object that was never made, is destroyed, or is of another kind", function);
    }
    return object;
}

template <typename Kind> Kind *alive(Kind *object, const char *function) { return const_cast<Kind *>(alive(static_cast<const Kind *>(object), function)); }

// Nothing is handed back to the heap, so that a use after this is seen.
template <typename Kind> int destroy(Kind *object, const char *function) {
    alive(object, function)->live = 0;
    return SUCCESS;
}

struct Shape {
    uint64_t m, n, k;
};

// Whether the description and the layouts belong together; what NVIDIA leaves undefined is a violation.
bool shape_of(const Description &description, const Layout &a, const Layout &b, const Layout &c, const Layout &d, Shape &shape) {
    shape.m = d.rows;
    shape.n = d.columns;
    shape.k = description.transposed_a ? a.rows : a.columns;
    const uint64_t a_rows = description.transposed_a ? a.columns : a.rows;
    const uint64_t b_rows = description.transposed_b ? b.columns : b.rows, b_columns = description.transposed_b ? b.rows : b.columns;
    for (const Layout *layout : {&a, &b, &c, &d}) {
        if (layout->leading < static_cast<int64_t>(layout->rows)) {
            return false;
        }
    }
    return description.compute == COMPUTE_32F && description.scale == F32 && a.type == BF16 && b.type == BF16 && (d.type == BF16 || d.type == F32) &&
           c.type == d.type && c.rows == d.rows && c.columns == d.columns && c.leading == d.leading && a_rows == shape.m && b_rows == shape.k &&
           b_columns == shape.n && (description.epilogue == EPILOGUE_DEFAULT || description.epilogue == EPILOGUE_BIAS);
}

bool aligned(uint64_t address, const Layout &layout, uint32_t to) { return address % to == 0 && layout.leading * layout.value_bytes() % 16 == 0; }

float from_bf16(uint16_t bits) {
    const uint32_t word = static_cast<uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &word, sizeof value);
    return value;
}

// To the nearest, halves to the even one.
uint16_t to_bf16(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return value != value ? 0x7fff : static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

float value_at(uint64_t address, int type, size_t index) {
    return type == F32 ? reinterpret_cast<const float *>(address)[index] : from_bf16(reinterpret_cast<const uint16_t *>(address)[index]);
}

struct Product {
    Description description;
    Layout a, b, d;
    Shape shape;
    float alpha, beta;
    uint64_t at_a, at_b, at_c, at_d, workspace;
    size_t workspace_bytes;
    Kind kind;

    // Column by column of the result; its sums in f32, part by part.
    void run() const {
        if (workspace_bytes > 0) {
            // Whatever the caller kept there is gone.
            std::memset(reinterpret_cast<void *>(workspace), 0xee, std::min<size_t>(workspace_bytes, 1 << 16));
        }
        const uint64_t per_part = (shape.k + kind.parts - 1) / kind.parts;
        // op(A), column by column.
        std::vector<float> left(shape.m * shape.k), sums(shape.m), part(shape.m);
        const uint16_t *const from_a = reinterpret_cast<const uint16_t *>(at_a), *const from_b = reinterpret_cast<const uint16_t *>(at_b);
        for (uint64_t x = 0; x < shape.k; ++x) {
            for (uint64_t i = 0; i < shape.m; ++i) {
                left[x * shape.m + i] = from_bf16(from_a[description.transposed_a ? x + i * a.leading : i + x * a.leading]);
            }
        }
        for (uint64_t j = 0; j < shape.n; ++j) {
            std::fill(sums.begin(), sums.end(), 0.0f);
            for (uint64_t first = 0; first < shape.k; first += per_part) {
                std::fill(part.begin(), part.end(), 0.0f);
                for (uint64_t x = first; x < std::min(first + per_part, shape.k); ++x) {
                    const float right = from_bf16(from_b[description.transposed_b ? j + x * b.leading : x + j * b.leading]);
                    const float *const column = &left[x * shape.m];
                    for (uint64_t i = 0; i < shape.m; ++i) {
                        part[i] += right * column[i];
                    }
                }
                for (uint64_t i = 0; i < shape.m; ++i) {
                    sums[i] += part[i];
                }
            }
            for (uint64_t i = 0; i < shape.m; ++i) {
                const size_t place = i + j * d.leading;
                float value = alpha * sums[i];
                // One value for each row of the result.
                value += description.epilogue == EPILOGUE_BIAS ? value_at(description.bias, d.type, i) : 0.0f;
                value += beta == 0.0f ? 0.0f : beta * value_at(at_c, d.type, place);
                if (d.type == F32) {
                    reinterpret_cast<float *>(at_d)[place] = value;
                } else {
                    reinterpret_cast<uint16_t *>(at_d)[place] = to_bf16(value);
                }
            }
        }
    }
};

// Null where these bytes were never an algorithm of ours.
const Kind *kind_of(const Algorithm &algorithm) {
    const uint64_t number = algorithm.words[0] - SIGNATURE;
    return number < NUM_KINDS ? &KINDS[number] : nullptr;
}

}  // namespace

#define FAULT(function)                                    \
    if (const int planted = standin_fault(function)) {     \
        return planted;                                    \
    }

STANDIN_API int cublasLtCreate(Handle **handle) {
    FAULT("cublasLtCreate")
    if (!standin_has_context()) {
        return NOT_INITIALIZED;
    }
    *handle = new Handle;
    return SUCCESS;
}

STANDIN_API int cublasLtDestroy(Handle *handle) { return destroy(handle, "cublasLtDestroy"); }

STANDIN_API size_t cublasLtGetVersion() { return 130100; }

STANDIN_API int cublasLtMatmulDescCreate(Description **description, int compute, int scale) {
    FAULT("cublasLtMatmulDescCreate")
    *description = new Description;
    (*description)->compute = compute;
    (*description)->scale = scale;
    return SUCCESS;
}

STANDIN_API int cublasLtMatmulDescDestroy(Description *description) { return destroy(description, "cublasLtMatmulDescDestroy"); }

STANDIN_API int cublasLtMatmulDescSetAttribute(Description *description, int attribute, const void *value, size_t num_bytes) {
    FAULT("cublasLtMatmulDescSetAttribute")
    alive(description, "cublasLtMatmulDescSetAttribute");
    constexpr int TRANSPOSE_A = 3, TRANSPOSE_B = 4, EPILOGUE = 7, BIAS_POINTER = 8;
    int number = 0;
    if (attribute != BIAS_POINTER) {
        if (num_bytes != sizeof number) {
            return INVALID_VALUE;
        }
        std::memcpy(&number, value, sizeof number);
    }
    switch (attribute) {
    case TRANSPOSE_A: description->transposed_a = number == 1; return number <= 1 ? SUCCESS : INVALID_VALUE;
    case TRANSPOSE_B: description->transposed_b = number == 1; return number <= 1 ? SUCCESS : INVALID_VALUE;
    case EPILOGUE: description->epilogue = number; return SUCCESS;
    case BIAS_POINTER:
        if (num_bytes != sizeof description->bias) {
            return INVALID_VALUE;
        }
        std::memcpy(&description->bias, value, num_bytes);
        return SUCCESS;
    default: standin_violation("cublasLtMatmulDescSetAttribute: the stand-in does not know attribute %d; add it", attribute);
    }
}

STANDIN_API int cublasLtMatrixLayoutCreate(Layout **layout, int type, uint64_t rows, uint64_t columns, int64_t leading) {
    FAULT("cublasLtMatrixLayoutCreate")
    *layout = new Layout;
    (*layout)->type = type;
    (*layout)->rows = rows;
    (*layout)->columns = columns;
    (*layout)->leading = leading;
    return rows > 0 && columns > 0 ? SUCCESS : INVALID_VALUE;
}

STANDIN_API int cublasLtMatrixLayoutDestroy(Layout *layout) { return destroy(layout, "cublasLtMatrixLayoutDestroy"); }

STANDIN_API int cublasLtMatmulPreferenceCreate(Preference **preference) {
    FAULT("cublasLtMatmulPreferenceCreate")
    *preference = new Preference;
    return SUCCESS;
}

STANDIN_API int cublasLtMatmulPreferenceDestroy(Preference *preference) { return destroy(preference, "cublasLtMatmulPreferenceDestroy"); }

STANDIN_API int cublasLtMatmulPreferenceSetAttribute(Preference *preference, int attribute, const void *value, size_t num_bytes) {
    FAULT("cublasLtMatmulPreferenceSetAttribute")
    alive(preference, "cublasLtMatmulPreferenceSetAttribute");
    constexpr int WORKSPACE = 1, REDUCTIONS = 3, FIRST_ALIGNMENT = 5, LAST_ALIGNMENT = 8;
    if (num_bytes != (attribute == WORKSPACE ? sizeof(uint64_t) : sizeof(uint32_t))) {
        return INVALID_VALUE;
    }
    if (attribute == WORKSPACE) {
        std::memcpy(&preference->workspace_bytes, value, num_bytes);
    } else if (attribute == REDUCTIONS) {
        std::memcpy(&preference->reductions, value, num_bytes);
    } else if (attribute >= FIRST_ALIGNMENT && attribute <= LAST_ALIGNMENT) {
        std::memcpy(&preference->alignments[attribute - FIRST_ALIGNMENT], value, num_bytes);
    } else {
        standin_violation("cublasLtMatmulPreferenceSetAttribute: the stand-in does not know attribute %d; add it", attribute);
    }
    return SUCCESS;
}

// The best first, as the preferences allow.
STANDIN_API int cublasLtMatmulAlgoGetHeuristic(Handle *handle, Description *description, Layout *a, Layout *b, Layout *c, Layout *d, Preference *preference,
                                               int wanted, Found *found, int *num_found) {
    constexpr const char *FUNCTION = "cublasLtMatmulAlgoGetHeuristic";
    FAULT(FUNCTION)
    alive(handle, FUNCTION);
    for (const Layout *layout : {a, b, c, d}) {
        alive(layout, FUNCTION);
    }
    Shape shape;
    if (wanted < 1 || !shape_of(*alive(description, FUNCTION), *a, *b, *c, *d, shape)) {
        return INVALID_VALUE;
    }
    const uint32_t *const alignments = alive(preference, FUNCTION)->alignments;
    const uint32_t promised = *std::min_element(alignments, alignments + 4);
    *num_found = 0;
    for (uint64_t number = 0; number < NUM_KINDS && *num_found < wanted; ++number) {
        const Kind &kind = KINDS[number];
        const bool may_split = kind.parts == 1 || (preference->reductions & REDUCTION_COMPUTE_TYPE) != 0;
        if (kind.workspace_bytes <= preference->workspace_bytes && kind.least_alignment <= promised && may_split) {
            Found &next = found[(*num_found)++];
            std::memset(&next, 0, sizeof next);
            next.algorithm.words[0] = SIGNATURE + number;
            next.workspace_bytes = kind.workspace_bytes;
        }
    }
    return *num_found > 0 ? SUCCESS : NOT_SUPPORTED;
}

// Whether an algorithm, perhaps of another process, serves for such a product.
STANDIN_API int cublasLtMatmulAlgoCheck(Handle *handle, Description *description, Layout *a, Layout *b, Layout *c, Layout *d, const Algorithm *algorithm,
                                        Found *found) {
    constexpr const char *FUNCTION = "cublasLtMatmulAlgoCheck";
    FAULT(FUNCTION)
    alive(handle, FUNCTION);
    Shape shape;
    if (!shape_of(*alive(description, FUNCTION), *alive(a, FUNCTION), *alive(b, FUNCTION), *alive(c, FUNCTION), *alive(d, FUNCTION), shape)) {
        return INVALID_VALUE;
    }
    const Kind *const kind = kind_of(*algorithm);
    if (kind == nullptr || kind->refuses) {
        return NOT_SUPPORTED;
    }
    std::memset(found, 0, sizeof *found);
    found->algorithm = *algorithm;
    found->workspace_bytes = kind->workspace_bytes;
    return SUCCESS;
}

STANDIN_API int cublasLtMatmul(Handle *handle, Description *description, const void *alpha, uint64_t at_a, Layout *a, uint64_t at_b, Layout *b,
                               const void *beta, uint64_t at_c, Layout *c, uint64_t at_d, Layout *d, const Algorithm *algorithm, uint64_t workspace,
                               size_t workspace_bytes, void *stream) {
    constexpr const char *FUNCTION = "cublasLtMatmul";
    FAULT(FUNCTION)
    if (!standin_has_context()) {
        return NOT_INITIALIZED;
    }
    alive(handle, FUNCTION);
    auto product = std::make_shared<Product>();
    if (!shape_of(*alive(description, FUNCTION), *alive(a, FUNCTION), *alive(b, FUNCTION), *alive(c, FUNCTION), *alive(d, FUNCTION), product->shape)) {
        return INVALID_VALUE;
    }
    const Kind *const kind = algorithm == nullptr ? &KINDS[0] : kind_of(*algorithm);
    if (kind == nullptr || workspace_bytes < kind->workspace_bytes) {
        return INVALID_VALUE;
    }
    if (kind->refuses) {
        return NOT_SUPPORTED;
    }
    const uint32_t least = kind->least_alignment;
    if (!aligned(at_a, *a, least) || !aligned(at_b, *b, least) || !aligned(at_c, *c, least) || !aligned(at_d, *d, least) || workspace % 256 != 0) {
        standin_violation("cublasLtMatmul: an operand or the workspace is not aligned as the algorithm was promised");
    }
    standin_check_device(at_a, a->num_bytes(), "cublasLtMatmul, A");
    standin_check_device(at_b, b->num_bytes(), "cublasLtMatmul, B");
    standin_check_device(at_c, c->num_bytes(), "cublasLtMatmul, C");
    standin_check_device(at_d, d->num_bytes(), "cublasLtMatmul, D");
    if (description->epilogue == EPILOGUE_BIAS) {
        standin_check_device(description->bias, d->rows * d->value_bytes(), "cublasLtMatmul, bias");
    }
    if (workspace_bytes > 0) {
        standin_check_device(workspace, workspace_bytes, "cublasLtMatmul, workspace");
    }
    product->description = *description;
    product->a = *a;
    product->b = *b;
    product->d = *d;
    std::memcpy(&product->alpha, alpha, sizeof product->alpha);
    std::memcpy(&product->beta, beta, sizeof product->beta);
    product->at_a = at_a;
    product->at_b = at_b;
    product->at_c = at_c;
    product->at_d = at_d;
    product->workspace = workspace;
    product->workspace_bytes = workspace_bytes;
    product->kind = *kind;
    auto *const owned = new std::shared_ptr<Product>(product);
    standin_enqueue(
        stream, "cublasLtMatmul",
        [](void *argument) {
            auto *const owned = static_cast<std::shared_ptr<Product> *>(argument);
            (*owned)->run();
            delete owned;
        },
        owned);
    return SUCCESS;
}

STANDIN_API const char *cublasLtGetStatusString(int status) { return status == NOT_SUPPORTED ? "not supported" : "an answer of the stand-in"; }
STANDIN_API const char *cublasLtGetStatusName(int) { return "CUBLAS_STATUS_OF_THE_STAND_IN"; }
