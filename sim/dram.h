// AXI4 DRAM model: a slave behind the m_axi_* ports of a Verilated top.
//
// Reads are answered in order, one beat a cycle, `latency` cycles after the address was taken, with many
// bursts outstanding; writes take address and data in any relative order and answer `write_latency` cycles after
// the last beat. All model outputs are registers: sample() looks at the settled outputs of the design before the
// clock edge, update() drives its inputs after it. Random stalls (single or in bursts) per channel, refresh gaps,
// a bandwidth limit per direction, injected error responses; an address beyond the memory gets DECERR. A protocol
// check runs along.
#pragma once
#include <sys/mman.h>

#include <cstdint>
#include <cstring>
#include <new>
#include <type_traits>
#include <vector>

struct Rng {  // xorshift64*
    uint64_t state = 0x9E3779B97F4A7C15ull;
    void seed(uint64_t s) { state = (s + 1) * 0x9E3779B97F4A7C15ull | 1; }
    uint32_t next() {
        state ^= state >> 12, state ^= state << 25, state ^= state >> 27;
        return uint32_t((state * 0x2545F4914F6CDD1Dull) >> 32);
    }
};

struct Stall {  // stalls a fraction of all cycles, `burst` cycles at a time
    uint64_t start = 0;
    uint32_t burst = 1, left = 0;
    void set(double fraction, uint32_t length) {
        burst = length ? length : 1, left = 0;
        double begin = fraction >= 1 ? 1 : fraction / (burst - fraction * burst + fraction);
        start = uint64_t(begin * 4294967296.0);
    }
    bool operator()(Rng& rng) {
        if (!start) return false;
        if (left) return left--, true;
        if (rng.next() >= start) return false;
        return left = burst - 1, true;
    }
};

template <class T, unsigned N> struct Ring {
    static_assert((N & (N - 1)) == 0);
    T item[N];
    uint32_t head = 0, tail = 0;
    uint32_t size() const { return tail - head; }
    T& front() { return item[head % N]; }
    T& push() { return item[tail++ % N]; }
    void pop() { head++; }
    void clear() { head = tail = 0; }
};

struct Bucket {  // tokens for beats: `rate` / ONE of them a cycle, room for one and what a cycle adds
    static constexpr uint64_t ONE = 1ull << 32;
    uint64_t rate = ONE, level = ONE;
    void set(uint64_t r) { rate = r, level = ONE; }
    void tick() { if (rate != ONE && level < ONE) level += rate; }
    bool has() const { return level >= ONE; }
    void take() { if (rate != ONE) level -= ONE; }
};

enum Channel { CH_AR, CH_R, CH_AW, CH_W, CH_B, CHANNELS };

// Mirrored field by field in sim/fastsim.py; counters run from the last clear.
struct DramStats {
    uint64_t ar, r_beats, aw, w_beats, w_bytes, b;  // handshakes; bytes with their strobe set
    uint64_t ar_to_r_sum, ar_to_r_min, ar_to_r_max; // cycles from AR taken to first R taken, per burst
    uint64_t r_errors, b_errors;                    // beats and responses other than OKAY
    uint64_t violations, violation_cycle;           // Violation bits; cycle of the first
};

enum Violation : uint64_t {
    V_AR_STABLE = 1, V_AW_STABLE = 2, V_W_STABLE = 4, V_4K = 8, V_BURST = 16, V_SIZE = 32, V_WLAST = 64,
};

template <class Top> struct Dram {
    static constexpr unsigned bus() {
        if constexpr (requires(Top & t) { t.m_axi_rdata; })
            return sizeof(std::remove_reference_t<decltype(Top::m_axi_rdata)>);
        else
            return sizeof(std::remove_reference_t<decltype(Top::m_axi_wdata)>);
    }
    static constexpr unsigned BUS = bus();
    static constexpr uint32_t QUEUE = 256;
    struct Burst { uint64_t addr, start, wrap, taken; uint32_t left, id; uint8_t size, type, resp; bool first; };
    struct Beat { uint8_t data[BUS]; uint64_t strb; bool last; };
    struct Resp { uint64_t due; uint32_t id; uint8_t resp; };
    struct Fault { uint64_t lo, hi; uint8_t resp, on; };  // on: bit 0 reads, bit 1 writes
    struct Held { uint64_t addr; uint32_t id; uint8_t len, size, burst; bool waiting; };

    Top& t;
    uint8_t* mem;
    uint64_t size, latency = 40, write_latency = 40, refresh_every = 0, refresh_for = 0;
    uint32_t outstanding = 64;
    Bucket read_tokens, write_tokens;
    Rng rng;
    Stall stall[CHANNELS];
    std::vector<Fault> faults;
    DramStats stats{};
    Ring<Burst, QUEUE> reads, writes;
    Ring<Beat, QUEUE> data;
    Ring<Resp, 2 * QUEUE> resps;
    Held ar_held{}, aw_held{};
    Beat w_held{};
    bool w_waiting = false, r_free = true, b_free = true, r_first = false;
    uint64_t r_taken = 0;

    Dram(Top& top, uint64_t bytes) : t(top), size((bytes + 4095) & ~4095ull) {
        mem = (uint8_t*)mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (mem == MAP_FAILED) throw std::bad_alloc();
    }
    ~Dram() { munmap(mem, size); }
    Dram(const Dram&) = delete;

    void clear_stats() { stats = {}, stats.ar_to_r_min = ~0ull; }

    // Drops every transaction and drives idle inputs; memory, faults and settings stay.
    void reset() {
        reads.clear(), writes.clear(), data.clear(), resps.clear();
        ar_held.waiting = aw_held.waiting = w_waiting = false, r_free = b_free = true;
        if constexpr (requires { t.m_axi_arvalid; }) t.m_axi_arready = 0, t.m_axi_rvalid = 0;
        if constexpr (requires { t.m_axi_awvalid; }) t.m_axi_awready = 0, t.m_axi_wready = 0, t.m_axi_bvalid = 0;
    }

    void violation(uint64_t bit, uint64_t now) {
        if (!stats.violations) stats.violation_cycle = now;
        stats.violations |= bit;
    }

    uint8_t check(uint64_t addr, uint8_t way) const {
        for (auto& f : faults)
            if (f.on & way && addr + BUS > f.lo && addr < f.hi) return f.resp;
        return addr >= size || size - addr < BUS ? 3 : 0;
    }

    // One cycle of an address channel: stability while waiting, legality, and the burst when it is taken.
    void address(Held now_, Held& held, bool valid, bool ready, Ring<Burst, QUEUE>& queue, uint64_t bit, uint64_t now) {
        if (held.waiting && (!valid || now_.addr != held.addr || now_.id != held.id || now_.len != held.len ||
                             now_.size != held.size || now_.burst != held.burst))
            violation(bit, now);
        held = now_, held.waiting = valid && !ready;
        if (!valid || !ready) return;
        uint64_t bytes = 1ull << now_.size, total = bytes * (now_.len + 1);
        if (bytes > BUS) violation(V_SIZE, now);
        if (now_.burst == 3 || (now_.burst == 2 && (total & (total - 1) || now_.addr & (bytes - 1)))) violation(V_BURST, now);
        if (now_.burst == 1 && (now_.addr & 4095 & ~(bytes - 1)) + total > 4096) violation(V_4K, now);
        queue.push() = {now_.addr, now_.addr, now_.burst == 2 ? total : 0, now, now_.len + 1u, now_.id,
                        now_.size, now_.burst, 0, true};
    }

    static void advance(Burst& b) {
        uint64_t bytes = 1ull << b.size;
        if (b.type) b.addr = (b.addr & ~(bytes - 1)) + bytes;
        if (b.wrap && b.addr % b.wrap == 0) b.addr -= b.wrap;
        b.left--, b.first = false;
    }

    // Before the edge that ends cycle `now`.
    void sample(uint64_t now) {
        if constexpr (requires { t.m_axi_arvalid; }) {
            Held a{t.m_axi_araddr, 0, uint8_t(t.m_axi_arlen), uint8_t(__builtin_ctz(BUS)), 1, false};
            if constexpr (requires { t.m_axi_arid; }) a.id = t.m_axi_arid;
            if constexpr (requires { t.m_axi_arsize; }) a.size = t.m_axi_arsize;
            if constexpr (requires { t.m_axi_arburst; }) a.burst = t.m_axi_arburst;
            if (t.m_axi_arvalid | ar_held.waiting) {
                stats.ar += t.m_axi_arvalid & t.m_axi_arready;
                address(a, ar_held, t.m_axi_arvalid, t.m_axi_arready, reads, V_AR_STABLE, now);
            }
            r_free = !t.m_axi_rvalid || t.m_axi_rready;
            if (t.m_axi_rvalid && t.m_axi_rready) {
                stats.r_beats++;
                if (r_first) {
                    uint64_t wait = now - r_taken;
                    stats.ar_to_r_sum += wait;
                    if (wait < stats.ar_to_r_min) stats.ar_to_r_min = wait;
                    if (wait > stats.ar_to_r_max) stats.ar_to_r_max = wait;
                }
            }
        }
        if constexpr (requires { t.m_axi_awvalid; }) {
            Held a{t.m_axi_awaddr, 0, uint8_t(t.m_axi_awlen), uint8_t(__builtin_ctz(BUS)), 1, false};
            if constexpr (requires { t.m_axi_awid; }) a.id = t.m_axi_awid;
            if constexpr (requires { t.m_axi_awsize; }) a.size = t.m_axi_awsize;
            if constexpr (requires { t.m_axi_awburst; }) a.burst = t.m_axi_awburst;
            if (t.m_axi_awvalid | aw_held.waiting) {
                stats.aw += t.m_axi_awvalid & t.m_axi_awready;
                address(a, aw_held, t.m_axi_awvalid, t.m_axi_awready, writes, V_AW_STABLE, now);
            }
            if (t.m_axi_wvalid | w_waiting) take_data(now);
            b_free = !t.m_axi_bvalid || t.m_axi_bready;
            if (t.m_axi_bvalid && t.m_axi_bready) stats.b++, stats.b_errors += t.m_axi_bresp != 0;
            while (data.size() && writes.size()) write_beat(now);
        }
    }

    void take_data(uint64_t now) {
        Beat beat;
        memcpy(beat.data, (const void*)&t.m_axi_wdata, BUS);
        beat.strb = t.m_axi_wstrb, beat.last = t.m_axi_wlast;
        if (w_waiting && (!t.m_axi_wvalid || beat.strb != w_held.strb || beat.last != w_held.last ||
                          memcmp(beat.data, w_held.data, BUS)))
            violation(V_W_STABLE, now);
        w_waiting = t.m_axi_wvalid && !t.m_axi_wready;
        if (w_waiting) w_held = beat;
        if (t.m_axi_wvalid && t.m_axi_wready)
            data.push() = beat, write_tokens.take(), stats.w_beats++, stats.w_bytes += __builtin_popcountll(beat.strb);
    }

    void write_beat(uint64_t now) {
        Burst& b = writes.front();
        Beat& beat = data.front();
        uint64_t word = b.addr & ~uint64_t(BUS - 1);
        uint8_t resp = check(word, 2);
        if (resp > b.resp) b.resp = resp;
        constexpr uint64_t ALL = BUS >= 64 ? ~0ull : (1ull << (BUS & 63)) - 1;
        if (resp == 0 && beat.strb == ALL)
            memcpy(mem + word, beat.data, BUS);
        else if (resp == 0)
            for (unsigned i = 0; i < BUS; i++)
                if (beat.strb >> i & 1) mem[word + i] = beat.data[i];
        advance(b);
        if (beat.last != (b.left == 0)) violation(V_WLAST, now);
        if (b.left == 0) resps.push() = {now + write_latency, b.id, b.resp}, writes.pop();
        data.pop();
    }

    // After the edge that began cycle `now`.
    void update(uint64_t now) {
        bool refresh = refresh_every && now % refresh_every < refresh_for;
        if constexpr (requires { t.m_axi_arvalid; }) {
            t.m_axi_arready = reads.size() < outstanding && !stall[CH_AR](rng);
            bool pause = stall[CH_R](rng) || refresh;
            read_tokens.tick();
            if (r_free) {
                t.m_axi_rvalid = !pause && read_tokens.has() && reads.size() && now >= reads.front().taken + latency;
                if (t.m_axi_rvalid) read_beat();
            }
        }
        if constexpr (requires { t.m_axi_awvalid; }) {
            t.m_axi_awready = writes.size() + resps.size() < outstanding && !stall[CH_AW](rng);
            write_tokens.tick();
            t.m_axi_wready = data.size() < QUEUE / 2 && !(stall[CH_W](rng) || refresh) && write_tokens.has();
            bool pause = stall[CH_B](rng);
            if (b_free) {
                t.m_axi_bvalid = !pause && resps.size() && now >= resps.front().due;
                if (t.m_axi_bvalid) {
                    t.m_axi_bresp = resps.front().resp;
                    if constexpr (requires { t.m_axi_bid; }) t.m_axi_bid = resps.front().id;
                    resps.pop();
                }
            }
        }
    }

    void read_beat() {
        read_tokens.take();
        Burst& b = reads.front();
        uint64_t word = b.addr & ~uint64_t(BUS - 1);
        uint8_t resp = check(word, 1);
        if (resp == 0)
            memcpy((void*)&t.m_axi_rdata, mem + word, BUS);
        else  // data of a failed beat must never matter: make it conspicuous
            memset((void*)&t.m_axi_rdata, 0xDB, BUS), stats.r_errors++;
        r_first = b.first, r_taken = b.taken;
        advance(b);
        t.m_axi_rresp = resp, t.m_axi_rlast = b.left == 0;
        if constexpr (requires { t.m_axi_rid; }) t.m_axi_rid = b.id;
        if (b.left == 0) reads.pop();
    }
};
