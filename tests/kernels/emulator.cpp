// A GPU's blocks, one after the other, on one thread of the system.
//
// A block's threads are fibers. Each warp runs as far as the next barrier of its block before the next warp does, so that a
// barrier that is missing shows: no other warp has come as far. The order of lanes, warps and blocks is `order`: 0 as they
// are numbered, 1 reversed, else shuffled by that seed.
//
// An access outside of what a kernel was given, or undefined behaviour (the kernels are compiled with traps), ends the
// launch with words that say where.
#include "emulator.hpp"
#include "fiber.hpp"
#include <algorithm>
#include <csetjmp>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <link.h>
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>
#include <vector>

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace {

const size_t PAGE = sysconf(_SC_PAGESIZE);
const size_t STACK = 64 << 10;
const unsigned MOST_THREADS = 1024;
const size_t MOST_SHARED = 99 << 10; // of a block, on the cards that have least (8.6 and 8.9)

enum class Wait { None, Block, Warp, Gone };

struct Fiber {
    Place place;
    Wait wait;
    unsigned shuffles;
};

Place home;
Fiber fibers[MOST_THREADS];
uint64_t given[2][MOST_THREADS]; // by turns: what a lane gives next must not hide what others have not taken yet
char *stacks;                    // each behind a page that may not be touched
emulator::Kernel *kernels;
const emulator::Kernel *running;
void **arguments;
sigjmp_buf out;
pthread_t thread_of_system;
char said[512];

// Where a barrier stands.
struct Site {
    const char *file;
    int line;
    bool operator==(const Site &other) const { return line == other.line && !strcmp(file, other.file); }
};
std::vector<Site> reached; // barriers that a block has come to
Site left_out;             // a barrier that nobody keeps; line 0: none

// SplitMix64.
struct Random {
    uint64_t state;
    uint64_t next() {
        uint64_t z = state += 0x9e3779b97f4a7c15;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
        z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
        return z ^ (z >> 31);
    }
};

void arrange(std::vector<unsigned> &all, unsigned count, unsigned order, Random &random) {
    all.resize(count);
    for (unsigned i = 0; i < count; i++) all[i] = order == 1 ? count - 1 - i : i;
    if (order > 1)
        for (unsigned i = count; i > 1; i--) std::swap(all[i - 1], all[random.next() % i]);
}

void pause(Wait why) {
    Fiber &fiber = fibers[threadIdx.x];
    fiber.wait = why;
    switch_stacks(fiber.place, home);
}

void entry() {
    running->run(arguments);
    pause(Wait::Gone);
    abort(); // nobody wakes a thread that is gone
}

void resume(unsigned thread) {
    threadIdx.x = thread;
    switch_stacks(home, fibers[thread].place);
}

void begin(unsigned thread) {
    Fiber &fiber = fibers[thread];
    fiber.wait = Wait::None;
    fiber.shuffles = 0;
    prepare(fiber.place, stacks + thread * (STACK + PAGE) + PAGE, STACK, entry);
}

// One warp as far as a barrier of the block, or its end.
void run_warp(unsigned first, const std::vector<unsigned> &lanes) {
    for (;;) {
        for (unsigned lane : lanes)
            if (fibers[first + lane].wait == Wait::None) resume(first + lane);
        unsigned waiting = 0;
        for (unsigned lane = 0; lane < 32; lane++) waiting += fibers[first + lane].wait == Wait::Warp;
        if (waiting == 0) return;
        if (waiting < 32) emulator::fail("a shuffle that not all lanes of a warp reach");
        for (unsigned lane = 0; lane < 32; lane++) fibers[first + lane].wait = Wait::None;
    }
}

void run_block(unsigned threads, unsigned order, Random &random) {
    static std::vector<unsigned> warps, lanes;
    for (unsigned thread = 0; thread < threads; thread++) begin(thread);
    for (;;) {
        arrange(warps, threads / 32, order, random);
        for (unsigned warp : warps) {
            arrange(lanes, 32, order, random);
            run_warp(warp * 32, lanes);
        }
        unsigned waiting = 0;
        for (unsigned thread = 0; thread < threads; thread++) waiting += fibers[thread].wait == Wait::Block;
        if (waiting == 0) return;
        if (waiting < threads) emulator::fail("a barrier that not all threads of a block reach");
        for (unsigned thread = 0; thread < threads; thread++) fibers[thread].wait = Wait::None;
    }
}

// Where the library's thread-local memory lies: all of it is shared memory that kernels declare.
thread_local char touched;
struct Declared { char *at; size_t size; };
Declared declared() {
    *const_cast<volatile char *>(&touched) = 1;
    Declared found = {};
    auto look = [](dl_phdr_info *info, size_t, void *to) {
        bool ours = false;
        for (int i = 0; i < info->dlpi_phnum; i++) {
            auto &part = info->dlpi_phdr[i];
            uintptr_t at = info->dlpi_addr + part.p_vaddr, code = reinterpret_cast<uintptr_t>(entry);
            ours |= part.p_type == PT_LOAD && code >= at && code < at + part.p_memsz;
        }
        for (int i = 0; ours && i < info->dlpi_phnum; i++)
            if (info->dlpi_phdr[i].p_type == PT_TLS)
                *static_cast<Declared *>(to) = {static_cast<char *>(info->dlpi_tls_data), info->dlpi_phdr[i].p_memsz};
        return int(ours);
    };
    dl_iterate_phdr(look, &found);
    return found;
}

// Dynamic shared memory of exactly the size asked for, between pages that may not be touched.
struct Dynamic {
    char *room, *at;
    size_t inner, size;
    explicit Dynamic(size_t size) : inner((size + PAGE - 1) / PAGE * PAGE), size(size) {
        int flags = MAP_PRIVATE | MAP_ANONYMOUS;
        room = static_cast<char *>(mmap(nullptr, inner + 2 * PAGE, PROT_NONE, flags, -1, 0));
        if (room == MAP_FAILED) abort();
        if (inner) mprotect(room + PAGE, inner, PROT_READ | PROT_WRITE);
        at = room + PAGE + (inner - (size + 15) / 16 * 16); // as aligned as on a GPU; less than 16 bytes stay behind it
    }
    ~Dynamic() { munmap(room, inner + 2 * PAGE); }
    void spoil() { memset(room + PAGE, 0xff, inner); }
    bool kept() const {
        auto spoilt = [](char byte) { return byte == char(0xff); };
        return std::all_of(room + PAGE, at, spoilt) && std::all_of(at + size, room + PAGE + inner, spoilt);
    }
};

void run_grid(const std::vector<unsigned> &blocks, unsigned threads, Dynamic &dynamic, unsigned order, Random &random) {
    Declared statics = declared();
    for (unsigned block : blocks) {
        blockIdx = {block % gridDim.x, block / gridDim.x % gridDim.y, block / gridDim.x / gridDim.y};
        if (statics.at) memset(statics.at, 0xff, statics.size);
        dynamic.spoil();
        running->share(dynamic.at);
        run_block(threads, order, random);
        if (!dynamic.kept()) emulator::fail("a write outside of a block's dynamic shared memory");
    }
}

const int SIGNALS[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP};
const size_t SIGNALS_COUNT = sizeof SIGNALS / sizeof *SIGNALS;
struct sigaction before[SIGNALS_COUNT];

void caught(int signal, siginfo_t *info, void *) {
    if (!pthread_equal(pthread_self(), thread_of_system)) { // not ours: it happens again, and whoever was there before is asked
        for (size_t i = 0; i < SIGNALS_COUNT; i++)
            if (SIGNALS[i] == signal) sigaction(signal, &before[i], nullptr);
        return;
    }
    const char *what = signal == SIGSEGV || signal == SIGBUS ? "an access outside of what it was given"
        : signal == SIGFPE                                   ? "a division by 0"
                           : "undefined behaviour: an address not aligned, an index out of bounds, an overflow";
    unsigned long at = reinterpret_cast<unsigned long>(info->si_addr);
    snprintf(said, sizeof said, "%s (%s at %#lx) in block (%u, %u, %u), thread %u", what, strsignal(signal), at, blockIdx.x,
             blockIdx.y, blockIdx.z, threadIdx.x);
    siglongjmp(out, 1);
}

// Catches faults of this thread while it is there.
struct Watch {
    stack_t own, others;
    Watch() {
        static char room[64 << 10];
        thread_of_system = pthread_self();
        own = {};
        own.ss_sp = room;
        own.ss_size = sizeof room;
        sigaltstack(&own, &others);
        struct sigaction action = {};
        action.sa_sigaction = caught;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK;
        for (size_t i = 0; i < SIGNALS_COUNT; i++) sigaction(SIGNALS[i], &action, &before[i]);
    }
    ~Watch() {
        for (size_t i = 0; i < SIGNALS_COUNT; i++) sigaction(SIGNALS[i], &before[i], nullptr);
        sigaltstack(&others, nullptr);
    }
};

void map_stacks() {
    if (stacks) return;
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void *room = mmap(nullptr, MOST_THREADS * (STACK + PAGE), PROT_READ | PROT_WRITE, flags, -1, 0);
    if (room == MAP_FAILED) abort();
    stacks = static_cast<char *>(room);
    for (unsigned i = 0; i < MOST_THREADS; i++) mprotect(stacks + i * (STACK + PAGE), PAGE, PROT_NONE);
}

} // namespace

namespace emulator {

void fail(const char *why) {
    snprintf(said, sizeof said, "%s, in block (%u, %u, %u)", why, blockIdx.x, blockIdx.y, blockIdx.z);
    siglongjmp(out, 1);
}

void barrier(const char *file, int line) {
    Site here = {file, line};
    if (threadIdx.x == 0 && std::find(reached.begin(), reached.end(), here) == reached.end()) reached.push_back(here);
    if (left_out.line == line && here == left_out) return;
    pause(Wait::Block);
}

void warp_barrier() { pause(Wait::Warp); }

uint64_t exchange(uint64_t own, unsigned from) {
    unsigned turn = fibers[threadIdx.x].shuffles++ % 2;
    given[turn][threadIdx.x] = own;
    pause(Wait::Warp);
    return given[turn][from];
}

Kernel::Kernel(const char *name, void (*run)(void **), void (*share)(void *))
    : name(name), signature(), run(run), share(share), next(kernels) {
    kernels = this;
}

void Kernel::add(const char *kind, size_t size) {
    size_t length = strlen(signature);
    if (length) length += snprintf(signature + length, sizeof signature - length, ", ");
    if (size) snprintf(signature + length, sizeof signature - length, "%s of %zu", kind, size);
    else snprintf(signature + length, sizeof signature - length, "%s", kind);
}

} // namespace emulator

// What the tests call. One launch at a time.
extern "C" {

#define SHOWN __attribute__((visibility("default")))

// The kernel number `at`: false where there are not so many.
SHOWN bool emulator_kernel(size_t at, const char **name, const char **signature) {
    const emulator::Kernel *kernel = kernels;
    while (kernel && at--) kernel = kernel->next;
    if (kernel) *name = kernel->name, *signature = kernel->signature;
    return kernel;
}

// The barrier number `at` of those that launches have come to.
SHOWN bool emulator_barrier(size_t at, const char **file, int *line) {
    if (at < reached.size()) *file = reached[at].file, *line = reached[at].line;
    return at < reached.size();
}

// From now on launches pass a barrier as if it were not there. Line 0: all barriers are there.
SHOWN void emulator_leave_out(const char *file, int line) { left_out = {file, line}; }

// Runs a kernel; what went wrong, or null. The words last until the next launch.
SHOWN const char *emulator_launch(
    const char *name, const size_t grid[3], size_t threads, size_t shared, void **given_arguments, unsigned order
) {
    running = kernels;
    while (running && strcmp(running->name, name)) running = running->next;
    if (!running) return "there is no such kernel";
    bool fits = grid[0] && grid[1] && grid[2] && grid[0] < 1u << 31 && grid[1] < 1 << 16 && grid[2] < 1 << 16;
    if (!fits || !threads || threads % 32 || threads > MOST_THREADS) return "no GPU has such a grid";
    if (shared > MOST_SHARED) return "more shared memory than the cards have";
    map_stacks();
    arguments = given_arguments;
    gridDim = {unsigned(grid[0]), unsigned(grid[1]), unsigned(grid[2])};
    blockDim = {unsigned(threads), 1, 1};
    Random random = {order};
    std::vector<unsigned> blocks;
    arrange(blocks, gridDim.x * gridDim.y * gridDim.z, order, random);
    Dynamic dynamic(shared);
    Watch watch;
    if (sigsetjmp(out, 1)) return said;
    run_grid(blocks, unsigned(threads), dynamic, order, random);
    return nullptr;
}

} // extern "C"
