// Records what a traced tile does as intervals: unit instructions, waits of threads, stalls of units, runs.
//
// It reads the `trace_*` outputs that sim/trace.py adds around the tile; a top without them gets an empty recorder.
// Compact: an interval is 24 bytes and there are at most `limit` of them; what comes later is only counted.
#pragma once
#include <cstdint>
#include <deque>
#include <vector>

// Mirrored field by field in sim/trace.py. begin, end: cycles, half open.
struct Interval {
    uint64_t begin, end;
    uint32_t value;   // instruction: cycles from issue to begin; wait: semaphore; stall: cycles stalled
    uint16_t detail;  // instruction, wait: pc; stall: bits of the causes
    uint8_t kind, unit;
};
enum Kind : uint8_t { K_RUN, K_INSTRUCTION, K_WAIT, K_STALL, K_UNFINISHED = 0x80 };

template <class Top> struct NoRecorder {
    NoRecorder(Top&) {}
    void sample(uint64_t) {}
};

template <class Top> struct Recorder {
    static constexpr unsigned UNITS = 5;
    static constexpr unsigned FIRST_CAUSE[UNITS] = {0, 3, 6, 9, 11}, CAUSES[UNITS] = {3, 3, 3, 2, 0};
    struct Issued { uint64_t cycle; uint16_t pc; };
    struct Open { uint64_t begin = 0, last = 0; uint32_t value = 0; uint16_t detail = 0; };

    Top& t;
    std::vector<Interval> intervals;
    uint64_t limit = 0, gap = 0;        // limit 0: off
    uint64_t dropped = 0, cut = 0;      // intervals beyond the limit; the cycle from which they are missing
    uint64_t orphans = 0;               // completions without an issue: a probe is wrong
    bool active = false;
    uint64_t begin = 0, free_at[UNITS] = {};
    std::deque<Issued> queue[UNITS];
    Open wait[UNITS], stall[UNITS];
    uint32_t waiting = 0, stalled = 0;  // bits: an open interval
    bool sending = false;

    Recorder(Top& top) : t(top) {}

    void emit(Interval x) {
        if (intervals.size() < limit) intervals.push_back(x);
        else if (!dropped++) cut = x.begin;
    }
    void close_wait(unsigned k, uint64_t now, uint8_t flag = 0) {
        emit({wait[k].begin, now, wait[k].value, wait[k].detail, uint8_t(K_WAIT | flag), uint8_t(k)});
        waiting &= ~(1u << k);
    }
    void close_stall(unsigned k) {
        emit({stall[k].begin, stall[k].last + 1, stall[k].value, stall[k].detail, K_STALL, uint8_t(k)});
        stalled &= ~(1u << k);
    }
    void complete(unsigned k, uint64_t now, uint8_t flag = 0) {
        if (queue[k].empty()) { orphans++; return; }
        Issued x = queue[k].front();
        queue[k].pop_front();
        uint64_t from = x.cycle > free_at[k] ? x.cycle : free_at[k];  // in order: it has the unit when the last one left
        free_at[k] = now;
        emit({from, now, uint32_t(from - x.cycle), x.pc, uint8_t(K_INSTRUCTION | flag), uint8_t(k)});
    }
    void finish(uint64_t now) {  // the run ended: close what is open
        for (unsigned k = 0; k < UNITS; k++) {
            while (!queue[k].empty()) complete(k, now, K_UNFINISHED);
            if (waiting >> k & 1) close_wait(k, now, K_UNFINISHED);
            if (stalled >> k & 1) close_stall(k);
            free_at[k] = 0;
        }
        emit({begin, now, 0, 0, K_RUN, 0});
        active = sending = false;
    }

    // Before the edge that ends cycle `now`.
    void sample(uint64_t now) {
        if (!limit) return;
        if (t.trace_clear) {  // the doorbell: counters start in the next cycle
            if (active) finish(now);
            active = true, begin = now + 1;
            return;
        }
        if (!active) return;
        if (!t.trace_enable) return finish(now);
        auto* pcs = (const uint16_t*)&t.trace_pc;
        for (uint32_t m = t.trace_issue; m; m &= m - 1) {
            unsigned k = __builtin_ctz(m);
            queue[k].push_back({now, pcs[k]});
        }
        auto* done = (const uint8_t*)&t.trace_done;
        for (unsigned k = 0; k + 1 < UNITS; k++)
            for (unsigned n = done[k]; n; n--) complete(k, now + 1);
        if (sending && !done[UNITS - 1]) complete(UNITS - 1, now);  // SEND shows that it works, one at a time
        sending = done[UNITS - 1];

        auto* wait_pcs = (const uint16_t*)&t.trace_wait_pc;
        auto* sems = (const uint8_t*)&t.trace_sem;
        for (uint32_t m = t.trace_wait ^ waiting; m; m &= m - 1) {
            unsigned k = __builtin_ctz(m);
            if (waiting >> k & 1) close_wait(k, now);
            else wait[k] = {now, now, sems[k], wait_pcs[k]}, waiting |= 1u << k;
        }
        uint32_t causes = t.trace_stall;
        if (causes | stalled)
            for (unsigned k = 0; k < UNITS; k++) {
                uint16_t mask = causes >> FIRST_CAUSE[k] & ((1u << CAUSES[k]) - 1);
                bool open = stalled >> k & 1;
                Open& s = stall[k];
                if (open && ((mask && mask != s.detail) || now - s.last > gap + 1)) close_stall(k), open = false;
                if (!mask) continue;
                if (!open) s = {now, now, 0, mask}, stalled |= 1u << k;
                s.last = now, s.value++;
            }
    }
};
