"""Exported Verilog made readable: names that a waveform viewer sorts and a person understands.

Amaranth numbers what has no name of its own (``\\$12``), what would be named twice (``\\o__payload$22``) and
what an expression carries into a unit (``\\port$7252$0``). `readable` renames inside each module, one to one:

* a net connected to a port of a unit: ``<unit>__<port>``;
* a port that an expression drives: the name that the expression has in the enclosing module;
* a field of a structure: ``<signal>__<field>``;
* what a register takes at the next edge: ``<register>__next``;
* what is left: ``_n12`` (a subexpression), ``_signal_3`` (no name in the source);
* a module: the path of the unit, ``serrano_tile_matmul_array``; an instance whose name is taken: ``u_...``.

Every name is then a plain identifier, which is no keyword of SystemVerilog. Three forms are spelled anew with
the same meaning, so that lint is quiet: ``! x`` of a vector (``~| x``), a declaration with an initial value
(an ``initial`` statement), ``casez`` without a default. Nothing else changes.
"""

import re
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

__all__ = ["Module", "parse", "readable", "rename"]

_NAME = r"(?:\\\S+ |[A-Za-z_]\w*)"
_TOKEN = re.compile(r"\d+'s?[bdho][\da-fA-FxXzZ?_]+|\$[a-z]\w*|\\(\S+) |([A-Za-z_]\w*)")
_MODULE = re.compile(rf"^module ({_NAME})\s*\(.*?^endmodule\n", re.M | re.S)
_INSTANCE = re.compile(rf"^  ({_NAME}) ({_NAME}) \(\n((?:    \.[^\n]*\n)+)  \);\n", re.M)
_CONNECTION = re.compile(rf"^    \.({_NAME})\((.*)\)(,?)$", re.M)
_DECLARED = re.compile(rf"^  (input|output|wire|reg|integer) (?:signed )?(?:\[\d+:\d+\] )?({_NAME})", re.M)
_SINGLE = re.compile(rf"({_NAME})(?: ?\[[\d:]+\])?")
_NEXT = re.compile(rf"^ +({_NAME}) *<= (\\\$\d+) ;", re.M)
_INITIAL = re.compile(r"^  reg ((?:\[\d+:\d+\] )?)(\w+) *= ([^;]+);$", re.M)
_CASE = re.compile(r"^ *(casez \(|default:|/\*[^\n]*\*/ default:|endcase\b)", re.M)

KEYWORDS = frozenset("""
alias always and assert assign assume automatic before begin bind bins binsof bit break buf bufif0 bufif1
byte case casex casez cell chandle class clocking cmos config const constraint context continue cover
covergroup coverpoint cross deassign default defparam design disable dist do edge else end endcase
endclass endclocking endconfig endfunction endgenerate endgroup endinterface endmodule endpackage
endprimitive endprogram endproperty endsequence endspecify endtable endtask enum event expect export
extends extern final first_match for force foreach forever fork forkjoin function generate genvar highz0
highz1 if iff ifnone ignore_bins illegal_bins import incdir include initial inout input inside instance
int integer interface intersect join join_any join_none large liblist library local localparam logic
longint macromodule matches medium modport module nand negedge new nmos nor noshowcancelled not notif0
notif1 null or output package packed parameter pmos posedge primitive priority program property protected
pull0 pull1 pulldown pullup pulsestyle_ondetect pulsestyle_onevent pure rand randc randcase randsequence
rcmos real realtime ref reg release repeat return rnmos rpmos rtran rtranif0 rtranif1 scalared sequence
shortint shortreal showcancelled signed small solve specify specparam static string strong0 strong1 struct
super supply0 supply1 table tagged task this throughout time timeprecision timeunit tran tranif0 tranif1
tri tri0 tri1 triand trior trireg type typedef union unique unsigned use uwire var vectored virtual void
wait wait_order wand weak0 weak1 while wildcard wire with within wor xnor xor
""".split())


def _plain(name: str) -> str:
    return name[1:-1] if name.startswith("\\") else name


@dataclass
class Module:
    """One module of an exported text; names unescaped."""

    name: str
    text: str
    nets: list[str] = field(default_factory=list)
    instances: list[tuple[str, str, list[tuple[str, str]]]] = field(default_factory=list)
    """Module, instance, [(port, expression)]."""


def parse(text: str) -> dict[str, Module]:
    """The modules of an exported text, by name."""
    modules = {}
    for match in _MODULE.finditer(text):
        module = Module(_plain(match[1]), match[0])
        module.nets = list(dict.fromkeys(_plain(m[2]) for m in _DECLARED.finditer(match[0])))
        for m in _INSTANCE.finditer(match[0]):
            connections = [(_plain(c[1]), c[2]) for c in _CONNECTION.finditer(m[3])]
            module.instances.append((_plain(m[1]), _plain(m[2]), connections))
        modules[module.name] = module
    return modules


def _clean(name: str) -> str:
    return re.sub(r"\W+", "_", name.replace(".", "__"))


class _Scope:
    """Names of one module, each used once."""

    def __init__(self, keep: Iterable[str]):
        self.new = {name: name for name in keep}
        self.used = set(self.new.values())

    def add(self, old: str, wanted: str) -> None:
        while wanted in self.used or wanted in KEYWORDS:
            wanted += "_"
        self.new[old] = wanted
        self.used.add(wanted)


def _names(module: Module, from_outside: dict[str, str]) -> dict[str, str]:
    """Old name -> new name of every net and instance of a module."""
    scope = _Scope(n for n in (*module.nets, *(i for _, i, _ in module.instances))
                   if re.fullmatch(r"[A-Za-z_]\w*", n) and n not in KEYWORDS)
    instances = {}
    for _, name, _ in module.instances:
        if name not in scope.new:
            scope.add(name, "u_" + _clean(re.sub(r"\$\d+$", "", name)))
        instances[name] = scope.new[name]
    connected: dict[str, str] = {}
    for _, name, connections in module.instances:
        for port, expression in connections:
            single = _SINGLE.fullmatch(expression)
            if single and not port.startswith(("port$", "$")):
                stem = re.sub(r"\$\d+$", "", port)
                net = _plain(single[1])
                if net.startswith("$") or re.sub(r"\$\d+$", "", net) == stem:
                    connected.setdefault(net, f"{instances[name]}__{_clean(stem)}")
    ports = 0
    takes = {_plain(m[2] + " "): _plain(m[1]) for m in _NEXT.finditer(module.text)}
    # Fields after what they are fields of, next values after their registers.
    for net in sorted(module.nets, key=lambda n: ("." in n) + 2 * (n in takes)):
        if net in scope.new:
            continue
        base, dot, path = net.partition(".")
        if net.startswith("$auto$"):
            scope.add(net, "_always")
        elif net.startswith("port$"):
            ports += 1
            scope.add(net, from_outside.get(net) or f"port_{ports}")
        elif dot and base in scope.new:
            scope.add(net, f"{scope.new[base]}__{_clean(path)}")
        elif net in connected:
            scope.add(net, connected[net])
        elif takes.get(net) in scope.new:
            scope.add(net, scope.new[takes[net]] + "__next")
        elif re.fullmatch(r"\$\d+", net):
            scope.add(net, "_n" + net[1:])
        else:
            scope.add(net, ("_" if net.startswith("$") else "") + _clean(net.lstrip("$")))
    return scope.new


def rename(text: str, top: str) -> tuple[str, dict[str, dict[str, str]]]:
    """Verilog with other names, and module -> {old name: new name}, all names unescaped.

    Ports of `top` must be plain identifiers; they stay.
    """
    modules = parse(text)
    files = _Scope([top])
    names: dict[str, dict[str, str]] = {}
    outside: dict[str, dict[str, str]] = {top: {}}
    queue = deque([top])
    while queue:  # from the top down: a unit's ports are named by what drives them
        module = modules[queue.popleft()]
        if module.name != top:
            files.add(module.name, _clean(re.sub(r"\$\d+(?=\.|$)", "", module.name)).replace("__", "_"))
        mine = names[module.name] = _names(module, outside[module.name])
        for child, instance, connections in module.instances:
            prefix = mine[instance] + "__"
            given = outside.setdefault(child, {})
            for port, expression in connections:
                single = _SINGLE.fullmatch(expression)
                if port.startswith("port$") and single:
                    new = mine[_plain(single[1])].removeprefix(prefix)
                    if not new.startswith("_") and new not in ("clk", "rst"):
                        given[port] = new
            queue.append(child)

    def module_text(match: re.Match[str]) -> str:
        old = _plain(match[1])
        mine = names[old]

        def token(m: re.Match[str]) -> str:
            name = m[1] or m[2]
            if name is None or m[2] in KEYWORDS:  # the backend escapes a name that is a keyword
                return m[0]
            if m[1] and name not in mine:
                raise ValueError(f"{name!r} is not declared in module {old!r}")
            return mine.get(name, m[0])

        def instance(m: re.Match[str]) -> str:
            child = names[_plain(m[1])]
            body = _CONNECTION.sub(
                lambda c: f"    .{child[_plain(c[1])]}({_TOKEN.sub(token, c[2]).strip()}){c[3]}", m[3])
            return f"  {files.new[_plain(m[1])]} {mine[_plain(m[2])]} (\n{body}  );\n"

        parts, at = [], match[0].index("(")
        head = f"module {files.new[old]} "
        for m in _INSTANCE.finditer(match[0]):
            parts += [_TOKEN.sub(token, match[0][at:m.start()]), instance(m)]
            at = m.end()
        return head + "".join([*parts, _TOKEN.sub(token, match[0][at:])])

    return _MODULE.sub(module_text, text), names


def _cases(text: str) -> str:
    """An empty default for every casez that has none: no assignment happens, as before."""
    parts, at, stack = [], 0, []
    for m in _CASE.finditer(text):
        if m[1].startswith("casez"):
            stack.append(False)
        elif m[1] == "endcase":
            if not stack.pop():
                indent = re.match(r" *", m[0])[0]
                parts += [text[at:m.start()], f"{indent}  default: ;\n"]
                at = m.start()
        else:
            stack[-1] = True
    return "".join([*parts, text[at:]])


def readable(text: str, top: str) -> str:
    """The Verilog of `hw.export.verilog`, renamed and quiet under lint; the same design."""
    text, _ = rename(text, top)
    text = _INITIAL.sub(r"  reg \1\2;\n  initial \2 = \3;", text)
    text = re.sub(r"= ! (?=[\w{(])", "= ~| ", text)
    return _cases(text)
