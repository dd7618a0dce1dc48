// cuDNN's fused attention as a few C functions: see cudnn.rs. All calls go through the header-only cudnn-frontend, which
// finds cuDNN by dlopen. Functions return 0, or another number with a message in `error`.
#include <cudnn_frontend.h>

#include <dlfcn.h>

#include <cstdio>
#include <exception>
#include <memory>
#include <string>
#include <unordered_map>

namespace fe = cudnn_frontend;

namespace cudnn_frontend {
void *cudnn_dlhandle = nullptr;
}

// As in cudnn.rs. A bias has 0 queries where there is none; else each of its sizes is 1 or that of the scores.
struct Shape {
    int64_t batch, heads, queries, keys, width;
    int64_t bias_batch, bias_heads, bias_queries;
    float scale;
    int32_t backward, deterministic;
};
static_assert(sizeof(Shape) == 80, "as in cudnn.rs");

// As in cudnn.rs; addresses on the device, of bf16 but for the log-sum-exp (B, H, S), which is of f32. Going forward,
// `out` and `log_sums` are written; going back, dq, dk and dv.
struct Operands {
    void *q, *k, *v, *bias, *out, *log_sums, *grad, *dq, *dk, *dv;
};

namespace {

enum Uid : int64_t { Q = 1, K, V, BIAS, OUT, LOG_SUMS, GRAD, DQ, DK, DV };

using Tensor = std::shared_ptr<fe::graph::Tensor_attributes>;

struct Plan {
    fe::graph::Graph graph;
    int64_t workspace = 0;
};

int failed(const std::string &why, char *error, size_t size) {
    std::snprintf(error, size, "%s", why.c_str());
    return 1;
}

// Tokens come before heads: (B, tokens, H, K) shown as (B, H, tokens, K).
fe::graph::Tensor_attributes heads_first(const char *name, Uid uid, const Shape &shape, int64_t tokens) {
    return fe::graph::Tensor_attributes()
        .set_name(name)
        .set_uid(uid)
        .set_dim({shape.batch, shape.heads, tokens, shape.width})
        .set_stride({tokens * shape.heads * shape.width, shape.width, shape.heads * shape.width, 1});
}

void gives(const Tensor &tensor, Uid uid, const Shape &shape, int64_t tokens) {
    auto like = heads_first("", uid, shape, tokens);
    tensor->set_output(true).set_uid(uid).set_dim(like.get_dim()).set_stride(like.get_stride());
}

fe::graph::Tensor_attributes log_sums_of(const Shape &shape) {
    return fe::graph::Tensor_attributes()
        .set_name("log_sums")
        .set_uid(LOG_SUMS)
        .set_dim({shape.batch, shape.heads, shape.queries, 1})
        .set_stride({shape.heads * shape.queries, shape.queries, 1, 1})
        .set_data_type(fe::DataType_t::FLOAT);
}

void describe(fe::graph::Graph &graph, const Shape &shape) {
    graph.set_io_data_type(fe::DataType_t::BFLOAT16)
        .set_intermediate_data_type(fe::DataType_t::FLOAT)
        .set_compute_data_type(fe::DataType_t::FLOAT);
    Tensor q = graph.tensor(heads_first("q", Q, shape, shape.queries));
    Tensor k = graph.tensor(heads_first("k", K, shape, shape.keys));
    Tensor v = graph.tensor(heads_first("v", V, shape, shape.keys));
    Tensor bias;
    if (shape.bias_queries > 0) {
        const int64_t heads = shape.bias_queries * shape.keys, batch = shape.bias_heads * heads;
        bias = graph.tensor(fe::graph::Tensor_attributes()
                                .set_name("bias")
                                .set_uid(BIAS)
                                .set_dim({shape.bias_batch, shape.bias_heads, shape.bias_queries, shape.keys})
                                .set_stride({batch, heads, shape.keys, 1}));
    }
    if (!shape.backward) {
        auto options = fe::graph::SDPA_attributes().set_name("attention").set_generate_stats(true).set_attn_scale(shape.scale);
        if (bias) options.set_bias(bias);
        auto [out, log_sums] = graph.sdpa(q, k, v, options);
        gives(out, OUT, shape, shape.queries);
        auto like = log_sums_of(shape);
        log_sums->set_output(true).set_uid(LOG_SUMS).set_data_type(fe::DataType_t::FLOAT);
        log_sums->set_dim(like.get_dim()).set_stride(like.get_stride());
        return;
    }
    Tensor out = graph.tensor(heads_first("out", OUT, shape, shape.queries));
    Tensor grad = graph.tensor(heads_first("grad", GRAD, shape, shape.queries));
    Tensor log_sums = graph.tensor(log_sums_of(shape));
    auto options = fe::graph::SDPA_backward_attributes().set_name("attention_back").set_attn_scale(shape.scale);
    options.set_deterministic_algorithm(shape.deterministic != 0);
    if (bias) options.set_bias(bias);
    auto [dq, dk, dv] = graph.sdpa_backward(q, k, v, out, grad, log_sums, options);
    gives(dq, DQ, shape, shape.queries);
    gives(dk, DK, shape, shape.keys);
    gives(dv, DV, shape, shape.keys);
}

// Nothing is thrown across the border to Rust.
template <typename F> int guarded(char *error, size_t size, F run) {
    try {
        return run();
    } catch (const std::exception &thrown) {
        return failed(thrown.what(), error, size);
    } catch (...) {
        return failed("cuDNN's front end threw something", error, size);
    }
}

} // namespace

extern "C" {

int vtrain_cudnn_open(void **handle, char *error, size_t size) {
    return guarded(error, size, [&] {
        if (!fe::cudnn_dlhandle) fe::cudnn_dlhandle = dlopen("libcudnn.so.9", RTLD_NOW | RTLD_GLOBAL);
        if (!fe::cudnn_dlhandle) return failed(std::string("libcudnn.so.9 was not found: ") + dlerror(), error, size);
        cudnnHandle_t opened = nullptr;
        const cudnnStatus_t status = fe::detail::create_handle(&opened);
        if (status != CUDNN_STATUS_SUCCESS)
            return failed(std::string("cuDNN cannot start: ") + fe::detail::get_error_string(status), error, size);
        *handle = opened;
        return 0;
    });
}

int vtrain_cudnn_plan(void *handle, const Shape *shape, void **plan, int64_t *workspace, char *error, size_t size) {
    return guarded(error, size, [&] {
        auto made = std::make_unique<Plan>();
        describe(made->graph, *shape);
        auto status = made->graph.build(static_cast<cudnnHandle_t>(handle), {fe::HeurMode_t::A, fe::HeurMode_t::FALLBACK});
        if (status.is_good()) status = made->graph.get_workspace_size(made->workspace);
        if (status.is_bad()) return failed(status.get_message(), error, size);
        *workspace = made->workspace;
        *plan = made.release();
        return 0;
    });
}

int vtrain_cudnn_run(
    void *handle, void *plan, void *stream, const Operands *operands, void *workspace, char *error, size_t size
) {
    return guarded(error, size, [&] {
        auto on = static_cast<cudnnHandle_t>(handle);
        if (fe::detail::set_stream(on, static_cast<cudaStream_t>(stream)) != CUDNN_STATUS_SUCCESS)
            return failed("cuDNN refuses the stream", error, size);
        std::unordered_map<int64_t, void *> pointers;
        const std::pair<Uid, void *> all[] = {
            {Q, operands->q},       {K, operands->k},   {V, operands->v},   {BIAS, operands->bias},
            {OUT, operands->out},   {LOG_SUMS, operands->log_sums},         {GRAD, operands->grad},
            {DQ, operands->dq},     {DK, operands->dk}, {DV, operands->dv},
        };
        for (const auto &[uid, pointer] : all)
            if (pointer) pointers[uid] = pointer;
        auto status = static_cast<Plan *>(plan)->graph.execute(on, pointers, workspace);
        return status.is_bad() ? failed(status.get_message(), error, size) : 0;
    });
}

} // extern "C"
