// A gate netlist behind the interface of a Verilated top (class Vtop), 64 power-up states at once.
//
// Bit k of a net's word is its value in lane k. Lanes differ in what registers and memories held at power-up and
// see the same inputs; the outputs that the testbench sees are lane 0's. After a reset every lane must show the
// same outputs (payloads where their valid says so): what differs depends on the power-up state, which is what a
// four-state simulator would show as X, without its pessimism. No compiler sees the gates: sim/gates.py
// writes them as a program of levels, each a few loops over one kind of gate, which is read at run time.
#pragma once
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <string>
#include <vector>

struct VerilatedContext {  // the part that the harness uses
    int reset = 0;
    uint64_t seed = 1;
    void randReset(int how) { reset = how; }
    void randSeed(int value) { seed = uint64_t(value); }
    void traceEverOn(bool) {}
};

using Lanes = uint64_t;

struct Group { int32_t op, count, out, operands; };  // `count` gates of one kind, outputs contiguous from `out`

struct Memory {
    int32_t width, size, abits, written;
    std::vector<Lanes> bits;  // [row][bit]
};

struct ReadPort { int32_t memory, clocked, enable, reset, data, operands; };  // operands: address, reset values
struct WritePort { int32_t memory, operands; };                               // operands: address, data, enables
struct PortBits { int32_t bytes, width, input, qualifier, operands; };

struct Netlist {
    std::vector<int32_t> words;
    const int32_t* operands;
    std::vector<Group> groups;
    std::vector<int32_t> flops;  // d, enable, reset, value at reset
    std::vector<Memory> memories;
    std::vector<ReadPort> reads;
    std::vector<WritePort> writes;
    std::vector<PortBits> ports;
    std::vector<Lanes> net, next;
    int32_t first_flop = 0;

    template <class T> const int32_t* take(const int32_t* at, std::vector<T>& to) {
        int32_t n = *at++;
        to.resize(n);
        memcpy((void*)to.data(), at, n * sizeof(T));
        return at + n * sizeof(T) / 4;
    }

    Netlist(const char* path, int random, uint64_t seed) {
        FILE* file = fopen(path, "rb");
        if (!file || fseek(file, 0, SEEK_END)) fprintf(stderr, "no netlist %s\n", path), abort();
        words.resize(size_t(ftell(file)) / 4);
        rewind(file);
        if (fread(words.data(), 4, words.size(), file) != words.size()) abort();
        fclose(file);
        const int32_t* at = words.data();
        net.assign(*at++, 0), first_flop = *at++;
        at = take(at, groups), at = take(at, flops), at = take(at, reads), at = take(at, writes), at = take(at, ports);
        auto random_word = [&] {  // splitmix64
            uint64_t z = seed += 0x9E3779B97F4A7C15ull;
            z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull, z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
            return random ? z ^ (z >> 31) : 0;
        };
        int32_t count = *at++;
        for (int32_t i = 0; i < count; i++) {
            Memory m{at[0], at[1], at[2], at[3], {}};
            at += 4;
            m.bits.resize(size_t(m.width) * m.size);
            const int32_t* content = at + 1;  // 0, 1 or 2 (undefined) for each bit, or nothing at all
            for (size_t b = 0; b < m.bits.size(); b++)
                m.bits[b] = *at && content[b] != 2 ? -Lanes(content[b]) : random_word();
            at = content + *at;
            memories.push_back(std::move(m));
        }
        operands = at;
        net[1] = ~Lanes(0);
        next.resize(flops.size() / 4);
        for (size_t i = 0; i < next.size(); i++) net[first_flop + i] = random_word();
        for (auto& r : reads)
            if (r.clocked)
                for (int32_t b = 0; b < memories[r.memory].width; b++) net[r.data + b] = random_word();
    }

    // The address when it is the same in all lanes that matter, else -1; per lane where it is not.
    int64_t address(const int32_t* bits, int32_t n, Lanes care) const {
        uint64_t value = 0;
        int first = __builtin_ctzll(care);
        for (int32_t i = 0; i < n; i++) {
            Lanes word = net[bits[i]], one = word >> first & 1;
            if ((word ^ (0 - one)) & care) return -1;
            value |= one << i;
        }
        return int64_t(value);
    }
    uint64_t address_of(const int32_t* bits, int32_t n, int lane) const {
        uint64_t value = 0;
        for (int32_t i = 0; i < n; i++) value |= (net[bits[i]] >> lane & 1) << i;
        return value;
    }

    void row(const ReadPort& r, Lanes care, Lanes* out) const {
        const Memory& m = memories[r.memory];
        const int32_t* bits = operands + r.operands;
        if (!care) return;
        int64_t at = address(bits, m.abits, care);
        if (at >= 0) {
            if (at < m.size)
                for (int32_t b = 0; b < m.width; b++)
                    out[b] = (out[b] & ~care) | (m.bits[size_t(at) * m.width + b] & care);
            return;
        }
        for (int lane = 0; lane < 64; lane++) {
            uint64_t mine = address_of(bits, m.abits, lane);
            Lanes mask = care & Lanes(1) << lane;
            if (mask && mine < uint64_t(m.size))
                for (int32_t b = 0; b < m.width; b++) out[b] = (out[b] & ~mask) | (m.bits[mine * m.width + b] & mask);
        }
    }

    void write(const WritePort& w) {
        Memory& m = memories[w.memory];
        const int32_t *bits = operands + w.operands, *data = bits + m.abits, *enable = data + m.width;
        Lanes any = 0;
        for (int32_t b = 0; b < m.width; b++) any |= net[enable[b]];
        if (!any) return;
        int64_t at = address(bits, m.abits, any);
        for (int lane = 0; lane < (at < 0 ? 64 : 1); lane++) {
            Lanes mask = at < 0 ? any & Lanes(1) << lane : any;
            uint64_t mine = at < 0 ? address_of(bits, m.abits, lane) : uint64_t(at);
            if (!mask || mine >= uint64_t(m.size)) continue;
            Lanes* row = &m.bits[mine * m.width];
            for (int32_t b = 0; b < m.width; b++) {
                Lanes e = net[enable[b]] & mask;
                row[b] = (row[b] & ~e) | (net[data[b]] & e);
            }
        }
    }

    void tick() {  // every register takes what was settled before the edge, reads before writes
        for (size_t i = 0; i < next.size(); i++) {
            const int32_t* f = &flops[4 * i];
            Lanes enable = net[f[1]], reset = net[f[2]], held = (net[f[0]] & enable) | (net[first_flop + i] & ~enable);
            next[i] = (held & ~reset) | (net[f[3]] & reset);
        }
        static thread_local std::vector<Lanes> rows;
        rows.clear();
        for (auto& r : reads)
            if (r.clocked) {
                int32_t width = memories[r.memory].width;
                size_t at = rows.size();
                rows.insert(rows.end(), &net[r.data], &net[r.data] + width);
                row(r, net[r.enable], &rows[at]);
                Lanes reset = net[r.reset];
                const int32_t* value = operands + r.operands + memories[r.memory].abits;
                for (int32_t b = 0; reset && b < width; b++)
                    rows[at + b] = (rows[at + b] & ~reset) | (net[value[b]] & reset);
            }
        for (auto& w : writes) write(w);
        memcpy(&net[first_flop], next.data(), next.size() * sizeof(Lanes));
        const Lanes* at = rows.data();
        for (auto& r : reads)
            if (r.clocked) {
                memcpy(&net[r.data], at, memories[r.memory].width * sizeof(Lanes));
                at += memories[r.memory].width;
            }
    }

    void settle() {
        for (auto& g : groups) {
            const int32_t *a = operands + g.operands, *b = a + g.count, *c = b + g.count;
            Lanes *n = net.data(), *o = n + g.out;
#define EACH(expression) for (int32_t i = 0; i < g.count; i++) o[i] = expression; break
            switch (g.op) {
                case 0: EACH(~n[a[i]]);
                case 1: EACH(n[a[i]] & n[b[i]]);
                case 2: EACH(n[a[i]] | n[b[i]]);
                case 3: EACH(n[a[i]] ^ n[b[i]]);
                case 4: EACH(~(n[a[i]] & n[b[i]]));
                case 5: EACH(~(n[a[i]] | n[b[i]]));
                case 6: EACH(~(n[a[i]] ^ n[b[i]]));
                case 7: EACH(n[a[i]] & ~n[b[i]]);
                case 8: EACH(n[a[i]] | ~n[b[i]]);
                case 9: EACH((n[b[i]] & n[c[i]]) | (n[a[i]] & ~n[c[i]]));
                default: row(reads[g.count], ~Lanes(0), o);  // an unclocked read
            }
        }
    }
};

struct Divergence { uint64_t cycle = 0, lanes = 0; const char* port = ""; uint64_t checked = 0; };
inline Divergence divergence;  // of the instance made last

// The netlist lies beside the library: x.so reads x.gates, wherever both were copied.
inline std::string beside() {
    Dl_info info;
    if (!dladdr((void*)&divergence, &info)) abort();
    std::string path = info.dli_fname;
    return path.substr(0, path.size() - 2) + "gates";
}

class Vtop {
  public:
#include "members.inc"
    explicit Vtop(VerilatedContext* context) : gates(beside().c_str(), context->reset, context->seed) {
        divergence = {};
#define PORT(name) where.push_back((uint8_t*)&name), names.push_back(#name);
#include "ports.inc"
#undef PORT
    }
    void eval() {
        if (clk && !was) {
            gates.tick(), cycles++;
            in_reset = rst ? in_reset + 1 : in_reset;
        } else if (!clk) {
            drive(), gates.settle(), show();
        }
        was = clk;
    }
    void final() {}

  private:
    Netlist gates;
    std::vector<uint8_t*> where;
    std::vector<const char*> names;
    uint64_t cycles = 0, in_reset = 0;
    bool was = false;

    void drive() {
        for (size_t p = 0; p < where.size(); p++)
            if (auto& port = gates.ports[p]; port.input)
                for (int32_t b = 0; b < port.width; b++)
                    gates.net[gates.operands[port.operands + b]] = -Lanes(where[p][b / 8] >> (b % 8) & 1);
    }
    void show() {
        bool check = in_reset >= 2 && !rst;
        for (size_t p = 0; p < where.size(); p++) {
            auto& port = gates.ports[p];
            if (port.input) continue;
            memset(where[p], 0, port.bytes);
            Lanes differ = 0, counts = port.qualifier < 0 ? ~Lanes(0) : gates.net[port.qualifier];
            for (int32_t b = 0; b < port.width; b++) {
                Lanes word = gates.net[gates.operands[port.operands + b]];
                where[p][b / 8] |= (word & 1) << (b % 8);
                differ |= word ^ -(word & 1);
            }
            if (check) divergence.checked++;
            if (check && (differ & counts) && !divergence.lanes)
                divergence.lanes = differ & counts, divergence.cycle = cycles, divergence.port = names[p];
        }
    }
};

#pragma GCC visibility push(default)
// Outputs compared since the start, and, where a lane differed: its first cycle, the lanes, the port.
extern "C" inline __attribute__((used)) uint64_t gates_divergence(uint64_t* cycle, uint64_t* lanes, const char** port) {
    *cycle = divergence.cycle, *lanes = divergence.lanes, *port = divergence.port;
    return divergence.checked;
}
#pragma GCC visibility pop
