// C interface of a Verilated component: clock, ports, streams, AXI4 DRAM model, AXI4-Lite master.
//
// One file serves every component: what it can do follows from the ports that the top has (m_axi_*: the DRAM
// model of dram.h; s_axil_*: CSR access). The build writes ports.inc, one PORT(name) per port, in the order of the
// indices used here. A cycle: sample settled outputs, rising edge, drive new inputs, settle. Little-endian host.
#include "Vtop.h"
#include "dram.h"
#include "trace.h"
#include "verilated.h"
#if WAVES_FST
#include "verilated_fst_c.h"
using Trace = VerilatedFstC;
#elif WAVES
#include "verilated_vcd_c.h"
using Trace = VerilatedVcdC;
#endif

#include <memory>

#if SPLIT_EVAL
// One clock and no other events: a cycle is one pass over the registers and one over what follows from the inputs,
// without Verilator's loops around them (the build looks: split_eval in sim/verilate.py).
#include "Vtop___024root.h"
void Vtop___024root___eval_nba(Vtop___024root*);
void Vtop___024root___eval_ico(Vtop___024root*);
#endif

double sc_time_stamp() { return 0; }

struct Port { uint8_t* at; uint32_t bytes; };

struct Stream {  // a driven stream (source) or a collected one (sink); payload bytes as in the port
    uint8_t *valid, *ready;
    Port payload;
    bool source, fired = false;
    Stall stall;
    std::vector<uint8_t> data;
    std::vector<uint64_t> stamps;  // cycle of each transfer since the last take
    size_t head = 0;               // source: bytes already presented
    size_t want = 0;               // sink: items to wait for

    size_t items() const { return payload.bytes ? data.size() / payload.bytes : stamps.size(); }
    bool done() const { return source ? !*valid && head == data.size() : items() >= want; }

    void sample(uint64_t now) {
        fired = *valid && *ready;
        if (!fired) return;
        stamps.push_back(now);
        if (!source) data.insert(data.end(), payload.at, payload.at + payload.bytes);
    }
    void update(Rng& rng) {
        bool pause = stall(rng);
        if (!source) {
            *ready = !pause;
        } else if (fired || !*valid) {
            *valid = !pause && head < data.size();
            if (*valid) {
                memcpy(payload.at, &data[head], payload.bytes);
                head += payload.bytes;
            } else if (head == data.size()) {
                data.clear(), head = 0;
            }
        }
        fired = false;
    }
    void reset() {
        *(source ? valid : ready) = 0;
        data.clear(), stamps.clear(), head = want = 0, fired = false, stall.left = 0;
    }
};

template <class Top> struct NoDram {
    NoDram(Top&, uint64_t) {}
    void sample(uint64_t) {}
    void update(uint64_t) {}
    void reset() {}
};

template <class Top> struct Sim {
    static constexpr bool HAS_DRAM =
        requires(Top& t) { t.m_axi_arvalid; } || requires(Top& t) { t.m_axi_awvalid; };
    static constexpr bool HAS_AXIL = requires(Top& t) { t.s_axil_awvalid; };
    using Memory = typename std::conditional_t<HAS_DRAM, std::type_identity<Dram<Top>>,
                                               std::type_identity<NoDram<Top>>>::type;
    VerilatedContext context;
    std::unique_ptr<Top> owner;
    Top& t;
    Memory dram;
    static constexpr bool HAS_TRACE = requires(Top& t) { t.trace_enable; };
    typename std::conditional_t<HAS_TRACE, std::type_identity<Recorder<Top>>,
                                std::type_identity<NoRecorder<Top>>>::type recorder;
    std::vector<Port> ports;
    std::vector<Stream> streams;
    Rng rng;
    uint64_t now = 0;
    bool dirty = true;
#if WAVES
    Trace trace;
#endif

    Sim(uint64_t bytes, uint64_t seed, bool random_init, const char* waves)
        : owner((context.randReset(random_init ? 2 : 0), context.randSeed(int(seed & 0x7FFFFFFF) | 1),
                 context.traceEverOn(waves != nullptr), new Top(&context))),
          t(*owner), dram(t, bytes), recorder(t) {
#define PORT(name) ports.push_back({(uint8_t*)&t.name, sizeof(t.name)});
#include "ports.inc"
        // A random power-up state must not reach the inputs: they are the harness's own registers.
#define INPUT(name) memset((void*)&t.name, 0, sizeof(t.name));
#include "inputs.inc"
        rng.seed(seed);
        if constexpr (HAS_DRAM) dram.rng.seed(seed ^ 0xD6E8FEB86659FD93ull), dram.clear_stats();
#if WAVES
        if (waves) t.trace(&trace, 99), trace.open(waves);
#endif
        settle();
    }
    ~Sim() {
        t.final();
#if WAVES
        if (trace.isOpen()) trace.close();
#endif
    }

    void dump(uint64_t time) {  // two steps a cycle: after the rising edge, after the new inputs
#if WAVES
        if (trace.isOpen()) trace.dump(time);
#endif
        (void)time;
    }
    void settle() { t.eval(), dirty = false; }
    void rise() {  // the registers, and what follows from them
#if SPLIT_EVAL
        t.rootp->__VnbaTriggered[0] = 1;
        Vtop___024root___eval_nba(t.rootp);
        t.rootp->__VnbaTriggered[0] = 0;
#else
        if constexpr (requires { t.clk; }) t.clk = 1, t.eval();
#endif
    }
    void inputs() {  // what follows from the inputs
#if SPLIT_EVAL
        t.rootp->__VicoTriggered[0] = 1;
        Vtop___024root___eval_ico(t.rootp);
#else
        if constexpr (requires { t.clk; }) t.clk = 0;
        t.eval();
#endif
    }

    template <bool ACTIVE> void cycle() {
        if (dirty) settle();
        if (ACTIVE) {
            dram.sample(now);
            recorder.sample(now);
            for (auto& s : streams) s.sample(now);
        }
        rise();
        dump(2 * now);
        now++;
        if (ACTIVE) {
            dram.update(now);
            for (auto& s : streams) s.update(rng);
        }
        inputs();
        dump(2 * now - 1);
    }

    void reset(uint64_t cycles) {
        dram.reset();
        for (auto& s : streams) s.reset();
        if constexpr (HAS_AXIL) t.s_axil_awvalid = 0, t.s_axil_wvalid = 0, t.s_axil_arvalid = 0;
        if constexpr (requires { t.rst; }) t.rst = 1;
        settle();
        for (uint64_t i = 0; i < cycles; i++) cycle<false>();
        if constexpr (requires { t.rst; }) t.rst = 0;
        settle();
        if constexpr (HAS_AXIL)  // a tile's reset is registered (register_reset in sim/verilate.py): it ends here
            for (uint64_t i = 0; i < 2; i++) cycle<false>();
    }

    uint64_t run(uint64_t max, const Port* stop) {
        if (dirty) settle();
        uint64_t from = now;
        while (now - from < max && !(stop && *stop->at)) cycle<true>();
        return now - from;
    }

    bool run_streams(uint64_t max) {
        for (uint64_t from = now;; cycle<true>()) {
            bool done = true;
            for (auto& s : streams) done = done && s.done();
            if (done) return true;
            if (now - from >= max) return false;
        }
    }

    // One AXI4-Lite access; the response code, or -1 when the slave did not answer in `max` cycles.
    int axil(bool write, uint32_t addr, uint32_t* data, uint64_t max) {
        if constexpr (HAS_AXIL) {
            uint64_t from = now;
            if (write)
                t.s_axil_awvalid = t.s_axil_wvalid = 1, t.s_axil_awaddr = addr, t.s_axil_wdata = *data,
                t.s_axil_wstrb = 15, t.s_axil_bready = 1;
            else
                t.s_axil_arvalid = 1, t.s_axil_araddr = addr, t.s_axil_rready = 1;
            int resp = -1;
            while (resp < 0 && now - from < max) {
                settle();
                bool aw = t.s_axil_awvalid && t.s_axil_awready, w = t.s_axil_wvalid && t.s_axil_wready;
                bool ar = t.s_axil_arvalid && t.s_axil_arready;
                if (write && t.s_axil_bvalid) resp = t.s_axil_bresp;
                if (!write && t.s_axil_rvalid) resp = t.s_axil_rresp, *data = t.s_axil_rdata;
                cycle<true>();
                if (aw) t.s_axil_awvalid = 0;
                if (w) t.s_axil_wvalid = 0;
                if (ar) t.s_axil_arvalid = 0;
            }
            t.s_axil_awvalid = t.s_axil_wvalid = t.s_axil_arvalid = t.s_axil_bready = t.s_axil_rready = 0;
            settle();
            return resp;
        }
        return -1;
    }
};

using S = Sim<Vtop>;

#pragma GCC visibility push(default)
extern "C" {
S* sim_new(uint64_t bytes, uint64_t seed, int random_init, const char* waves) {
    try {
        return new S(bytes, seed, random_init, waves);
    } catch (const std::bad_alloc&) {
        return nullptr;
    }
}
void sim_free(S* s) { delete s; }
uint64_t sim_cycles(S* s) { return s->now; }
void sim_reset(S* s, uint64_t cycles) { s->reset(cycles); }
void sim_set(S* s, int port, const void* value) {
    memcpy(s->ports[port].at, value, s->ports[port].bytes);
    s->dirty = true;
}
void sim_get(S* s, int port, void* value) {
    if (s->dirty) s->settle();
    memcpy(value, s->ports[port].at, s->ports[port].bytes);
}
uint32_t sim_port_bytes(S* s, int port) { return s->ports[port].bytes; }
uint64_t sim_run(S* s, uint64_t max, int stop) { return s->run(max, stop < 0 ? nullptr : &s->ports[stop]); }
int sim_axil(S* s, int write, uint32_t addr, uint32_t* data, uint64_t max) { return s->axil(write, addr, data, max); }

int sim_stream(S* s, int source, int valid, int ready, int payload) {
    Stream x{s->ports[valid].at, s->ports[ready].at, s->ports[payload], source != 0};
    s->streams.push_back(x);
    return int(s->streams.size()) - 1;
}
void sim_stream_stall(S* s, int id, double fraction, uint32_t burst) { s->streams[id].stall.set(fraction, burst); }
void sim_stream_push(S* s, int id, const uint8_t* data, uint64_t items) {
    auto& x = s->streams[id];
    x.data.insert(x.data.end(), data, data + items * x.payload.bytes);
}
void sim_stream_want(S* s, int id, uint64_t items) { s->streams[id].want = items; }
uint64_t sim_stream_stamps(S* s, int id, uint64_t* out) {  // out may be null; taking clears them
    auto& x = s->streams[id];
    uint64_t n = x.stamps.size();
    if (out) memcpy(out, x.stamps.data(), 8 * n), x.stamps.clear();
    return n;
}
uint64_t sim_stream_items(S* s, int id) {
    auto& x = s->streams[id];
    return x.source ? (x.data.size() - x.head) / x.payload.bytes + *x.valid : x.items();
}
void sim_stream_take(S* s, int id, uint8_t* out, uint64_t items) {
    auto& x = s->streams[id];
    memcpy(out, x.data.data(), items * x.payload.bytes);
    x.data.erase(x.data.begin(), x.data.begin() + items * x.payload.bytes);
}
int sim_run_streams(S* s, uint64_t max) { return s->run_streams(max); }
}

template <class D> concept IsDram = requires(D d) { d.mem; };
template <IsDram D> uint8_t* memory(D& d, uint64_t* size) { return *size = d.size, d.mem; }
template <class D> uint8_t* memory(D&, uint64_t* size) { return *size = 0, nullptr; }
template <IsDram D> DramStats* stats(D& d, bool clear) { return clear ? d.clear_stats() : void(), &d.stats; }
template <class D> DramStats* stats(D&, bool) { return nullptr; }
template <class D> void timing(D& d, const uint64_t* v) {
    if constexpr (IsDram<D>)
        d.latency = v[0], d.write_latency = v[1], d.outstanding = uint32_t(v[2]), d.refresh_every = v[3], d.refresh_for = v[4],
        d.read_tokens.set(v[5]), d.write_tokens.set(v[5]);
}
template <class R> void trace_start(R& r, uint64_t limit, uint64_t gap) {
    if constexpr (requires { r.limit; }) {
        auto& top = r.t;
        r.~R(), new (&r) R(top);
        r.limit = limit, r.gap = gap;
    }
}
// Copies the intervals out and forgets them; state: count, dropped, first cycle of those, orphans.
template <class R> void trace_take(R& r, Interval* out, uint64_t* state) {
    if constexpr (requires { r.limit; }) {
        state[0] = r.intervals.size(), state[1] = r.dropped, state[2] = r.cut, state[3] = r.orphans;
        if (!out) return;
        memcpy(out, r.intervals.data(), r.intervals.size() * sizeof(Interval));
        r.intervals.clear(), r.dropped = r.orphans = 0;
    }
}
template <class D> void dram_stall(D& d, int ch, double f, uint32_t burst) { if constexpr (IsDram<D>) d.stall[ch].set(f, burst); }
template <class D> void fault(D& d, uint64_t lo, uint64_t hi, uint8_t resp, uint8_t on) {
    if constexpr (IsDram<D>) {
        if (!on) d.faults.clear();
        else d.faults.push_back({lo, hi, resp, on});
    }
}

extern "C" {
uint8_t* sim_dram(S* s, uint64_t* size) { return memory(s->dram, size); }
DramStats* sim_dram_stats(S* s, int clear) { return stats(s->dram, clear != 0); }
void sim_dram_timing(S* s, const uint64_t* values) { timing(s->dram, values); }
void sim_trace_start(S* s, uint64_t limit, uint64_t gap) { trace_start(s->recorder, limit, gap); }
void sim_trace_take(S* s, Interval* out, uint64_t* state) { trace_take(s->recorder, out, state); }
void sim_dram_stall(S* s, int channel, double fraction, uint32_t burst) { dram_stall(s->dram, channel, fraction, burst); }
void sim_dram_fault(S* s, uint64_t lo, uint64_t hi, int resp, int on) { fault(s->dram, lo, hi, uint8_t(resp), uint8_t(on)); }
}
