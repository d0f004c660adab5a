"""Models and optimizers: parameters, gradients, steps and loaded weights."""

from __future__ import annotations

import ast
from typing import Any

from niblick.audit.flow.adapters import are_off, hung, refreshes, taken
from niblick.audit.flow.boxes import Box, collect, depends, known, merge, snapshot, target_bits
from niblick.audit.flow.joining import joined
from niblick.audit.flow.methods import Scopes, learns, starts_afresh
from niblick.audit.flow.objects import Bound, Dotted, Function, Module, Namespace, Optimizer
from niblick.audit.flow.observing import Observing
from niblick.audit.flow.state import SHOWN
from niblick.audit.flow.trials import over_ranks
from niblick.audit.flow.writing import told_by
from niblick.audit.reads import name_of
from niblick.audit.words import words

_MOST_INNER_CALLS = 200
_MOST_HOOKS = 16
_SELF_MODULE = words(
    "to cuda cpu bfloat16 float half double requires_grad_ compile apply type"
    " share_memory modules children"
)

_PARAMETERS = frozenset({"parameters", "buffers"})

_NAMED = frozenset({"named_parameters", "named_buffers"})
_NAMED_PARTS = frozenset({"named_modules", "named_children"})

_USUAL_NAMES = (
    "tok_emb.weight",
    *(
        f"blocks.{i}.{part}.weight"
        for i in (0, 4, 8, 9, 10, 11)
        for part in ("attn.proj", "mlp.fc")
    ),
)
"""Names that stand for a model's parameters where a program picks some of them by name.

One more is left unknown.
"""
STATE_NAMES = (_USUAL_NAMES[0], _USUAL_NAMES[1], _USUAL_NAMES[4])
"""Of these, what a saved state holds: an embedding, a projection, a layer further in."""


class Learning(Observing):
    """Models and optimizers: parameters, gradients, steps and loaded weights."""

    def roots_in(self, values: list[Any]) -> frozenset[int]:
        roots: set[int] = set()
        for value in values:
            if isinstance(value, Module):
                roots.add(value.leaf)
            elif isinstance(value, (list, tuple, dict)):
                parts = value.values() if isinstance(value, dict) else value
                roots |= self.roots_in(list(parts)[:64])
            elif isinstance(value, Box):
                roots |= value.roots
        return frozenset(roots)

    def module_call(
        self, module: Module, bound: Bound, args: list[Any], named: dict[str, Any], node: ast.AST
    ) -> Any:
        name, leaf = bound.name, self.leaves[module.leaf]
        if bound.function is not None and name != "forward":
            if self.learning(bound.function):
                return self.call_function(bound.function, [module, *args], named, node)
            if starts_afresh(module.cls, bound.function):
                leaf.seen = 0
                return None
            if name in {"train", "eval"}:
                return self.set_mode(module, name, args)
            return self.forward(module, args, named, node, bound.function)
        if name in {"train", "eval"}:
            return self.set_mode(module, name, args)
        if name in _SELF_MODULE:
            return [module] if name in {"modules", "children"} else module
        whole = self.param_box(frozenset({module.leaf}))
        if name in _PARAMETERS:
            return [whole, self.param_box(whole.roots)]
        if name in _NAMED:
            return [*((each, whole) for each in _USUAL_NAMES), (Box(shape=()), whole)]
        if name in _NAMED_PARTS:
            names = [each.removesuffix(".weight") for each in _USUAL_NAMES]
            return [*((each, whole) for each in names), (Box(shape=()), whole)]
        if name == "state_dict":
            return {each: self.param_box(whole.roots) for each in STATE_NAMES}
        if name == "load_state_dict":
            self.load_state(module, args)
            return Box()  # the names that did not fit, if any
        if name == "zero_grad":
            leaf.grad = 0
            return None
        if name.startswith("register_forward"):
            return self.hook(args)
        if name in {"no_sync", "register_buffer", "add_module"}:
            return Dotted("contextlib.nullcontext")
        return self.forward(module, args, named, node)

    def set_mode(self, module: Module, name: str, args: list[Any]) -> Module:
        """A model is told to train or to evaluate; where that is not sure, its mode is unknown."""
        given = self.truth(args[0]) if args else True
        sure = given is not None and self.uncertain <= 0
        module.attrs["training"] = name == "train" and given if sure else Box(shape=())
        return module

    def hook(self, args: list[Any], part: bool = False) -> Namespace:
        """A forward hook is put on a model, or on a part of one."""
        counts = _reads_data(args[0] if args else None)
        if counts and not self.hooks:
            self.hooking.clear()
        self.hooking += args[:1] if counts else []
        self.hooks += counts
        self.parts_hooked |= part
        return Namespace({"__hook__": counts})

    def look_on(self, module: Module, number: int, node: ast.AST) -> None:
        """Hooks are shown what goes through a model, as statistics of tokens that it is given."""
        marks = frozenset({f"{SHOWN}{number}"})
        inside = Box(
            roots=frozenset({module.leaf}), seen=self.leaves[module.leaf].seen, marks=marks
        )
        part = self.param_box(frozenset({module.leaf}))
        for hook in self.hooking[:_MOST_HOOKS]:
            function = hook.function if isinstance(hook, Bound) else hook
            if isinstance(function, Function):
                bound = isinstance(hook, Bound) and not isinstance(hook.holder, Module)
                given = len(function.node.args.args) - bound
                self.call_value(hook, [part, (inside,), snapshot(inside)][:given], {}, node)

    def told_weights(self, sources: list[Box]) -> None:
        """Weights are made of values; what hooks have seen of tokens may be among them."""
        for mark in (m for box in sources for m in box.marks if m.startswith(SHOWN)):
            self.trace.calibrated.add(int(mark.removeprefix(SHOWN)))

    def learning(self, function: Function) -> bool:
        """Whether a function of the program trains, itself or in what it calls."""
        return learns(function, self.program_functions, self.training)

    def left_over(self) -> None:
        """Notes code that trains and that the run may come to by ways that are not followed."""
        for key, (function, said) in self.handed.items():
            if key not in self.entered:
                self.note(f"limit: {function.name}, which trains, was handed to {said}")
        for name, methods in self.methods.items():
            for method in methods if name.startswith("__") and name.endswith("__") else ():
                made = method.owner is not None and id(method.owner) in self.made
                if made and id(method.node) not in self.entered and self.learning(method):
                    self.note(f"limit: {name} trains, and what calls it was not followed")

    def too_often(self, name: str) -> bool:
        """Whether a function has called itself too deep or too many times within one call from
        outside.
        """
        depth = self.stack.count(name)
        self.inner_calls[name] = self.inner_calls.get(name, 0) + 1 if depth else 0
        return depth > 4 or self.inner_calls[name] > _MOST_INNER_CALLS

    def program_functions(self, scopes: Scopes, call: ast.Call) -> list[Function]:
        """The functions of the program that a call in these scopes may be to."""
        name = name_of(call.func)
        if isinstance(call.func, ast.Name):
            found = next((s[name] for s in scopes if name in s), None)
            return [found] if isinstance(found, Function) else []
        return self.methods.get(name, [])

    def note_adapters(self, function: Function, args: list[Any]) -> None:
        """Adapters that a function of the program has hung on a model, or has taken from it or
        started afresh.
        """
        models = [a for a in args if isinstance(a, Module)]
        if not models:
            return
        known = self.adapting.get(id(function.node))
        if known is None:
            known = self.adapting[id(function.node)] = (
                hung(function.node),
                taken(function.node),
                refreshes(function.node),
            )
        self.hung |= known[0]
        for model in models:
            leaf = self.leaves[model.leaf]
            if known[2] or are_off(known[1], self.hung):
                leaf.seen = leaf.solid
            if known[0]:
                leaf.solid = leaf.seen

    def load_state(self, module: Module, args: list[Any]) -> None:
        sources = self.frozen([b for a in args for b in collect(a)])
        leaf = self.leaves[module.leaf]
        self.told_weights(sources)
        if not sources:
            leaf.seen |= self.disk.seen
            return
        told = stepped = 0
        for source in sources:
            told |= target_bits(source) if told_by(source) else 0
            stepped |= source.seen & ~leaf.seen if "grad" in source.marks else 0
        leaf.seen = merge(sources).seen | told
        if told | stepped:
            marks = frozenset({"kept"} if told else {"grad"})
            self.record_update(frozenset({module.leaf}), told | stepped, None, marks)

    def optimizer_call(
        self, optimizer: Optimizer, name: str, args: list[Any], node: ast.AST
    ) -> Any:
        roots = optimizer.roots or frozenset(self.leaves)
        if name == "zero_grad":
            for root in roots:
                self.leaves[root].grad = 0
        if name == "update" and args and isinstance(args[0], Module):
            self.update_param(self.param_box(frozenset({args[0].leaf})), collect(args[1:]), node)
        if name == "step":
            for arg in args[:1]:
                if isinstance(arg, (Function, Bound)):
                    self.call_value(arg, [], {}, node)
            self.interest += 1
            self.apply_gradients(roots, node)
        return Box() if name not in {"zero_grad", "add_param_group"} else None

    def apply_gradients(self, roots: frozenset[int], node: ast.AST) -> None:
        learnt = frozenset(r for r in roots if self.leaves[r].grad)
        positions = 0
        marks: frozenset[str] = frozenset()
        for root in learnt:
            leaf = self.leaves[root]
            positions |= leaf.grad
            leaf.seen |= leaf.grad
            marks |= leaf.marks
        for root in roots:
            self.leaves[root].marks -= {"train", "somewhere"}
        if learnt:
            self.record_update(learnt, positions, node, marks)

    def backward(self, loss: Box) -> None:
        positions = target_bits(loss) or depends(loss)
        self.trace.trained |= loss.scores
        self.interest += 1
        self.learnt_from(loss)
        for root in loss.roots:
            leaf = self.leaves[root]
            leaf.grad |= positions
            leaf.marks |= loss.marks & {"train", "somewhere"}

    def torch_module(self, last: str, args: list[Any]) -> Any:
        """A parameter or layer made outside a model class: a leaf of its own."""
        if last == "Parameter":
            box = snapshot(self.frozen([known(args[0])])[0]) if args else Box()
            return self.make_leaf(box, "parameter")
        if last in {"ModuleList", "Sequential", "ParameterList"} and args:
            items = [
                i
                for a in args
                for i in (self.iterate(a, None) if isinstance(a, (list, tuple)) else [a])
            ]
            leaves = [i for i in items if isinstance(i, Module)]
            return leaves[0] if leaves else merge(collect(items))
        return Module(last, self.new_leaf("module", last))

    def gradients(self, args: list[Any], named: dict[str, Any]) -> Any:
        losses = collect(args[0])
        for each in losses:
            self.learnt_from(each)
        loss = merge(self.frozen(losses))
        inputs = args[1] if len(args) > 1 else named.get("inputs", [])
        positions = loss.targets or depends(loss)
        self.interest += 1
        out = []
        for box in collect(inputs) or [Box()]:
            out.append(
                Box(shape=box.shape, seen=positions, roots=box.roots, marks=frozenset({"grad"}))
            )
        return out

    def changing(self, last: str, args: list[Any], named: dict[str, Any], node: ast.AST) -> Any:
        """Functions made into their gradients, calls that change several parameters, and what the
        ranks of a run give each other; NotImplemented for any other name.
        """
        if last == "all_reduce" and args:
            how = _names((*args[1:], *named.values()))
            over_ranks(args[0], how)
            if "MIN" in how:
                self.smallest(args[0])
        if last == "all_gather_object" and len(args) > 1 and isinstance(args[0], list):
            if any(box.scores for box in collect(args[1])):
                args[0][:] = [args[1]] * len(args[0])
            return None
        if last in {"all_gather", "gather"} and len(args) > 1:
            into, given = (args[0], args[1]) if last == "all_gather" else (args[1], args[0])
            if isinstance(into, list) and isinstance(given, Box) and given.scores:
                into[:] = [given]  # what other ranks have scored is left to them
                return None
        if last in {"grad", "grad_and_value", "value_and_grad"} and args:
            function = args[-1] if isinstance(args[0], Module) else args[0]
            if isinstance(function, (Function, Bound)):
                both, first = last != "grad", last == "grad_and_value"
                attrs = {"__gradient_of__": function, "__both__": both, "__first__": first}
                return Namespace(attrs)
        together = last.startswith("_foreach_") and last.endswith("_")
        if args[1:] and (together or last == "vector_to_parameters"):
            self.changed_together(last, args, node)
            return None
        return NotImplemented

    def gradient_call(
        self, attrs: dict[str, Any], args: list[Any], named: dict[str, Any], node: ast.AST
    ) -> Any:
        """What a transformed function gives: the gradient of its loss, beside that where asked."""
        loss = self.call_value(attrs["__gradient_of__"], args, named, node)
        found = self.gradients([loss], {})
        gradient = found[0] if len(found) == 1 else found
        both = (gradient, loss) if attrs["__first__"] else (loss, gradient)
        return both if attrs["__both__"] else gradient

    def changed_together(self, name: str, args: list[Any], node: ast.AST) -> None:
        """Several parameters change in one call."""
        vector = name == "vector_to_parameters"
        targets, rest = (args[1], args[:1]) if vector else (args[0], args[1:])
        replaces = vector or name == "_foreach_copy_"
        for box in collect(targets):
            if box.live:
                self.update_param(box, collect(rest), node, replace=replaces)

    def join_values(self, left: Any, right: Any) -> Any:
        if (
            isinstance(left, (tuple, list))
            and isinstance(right, (tuple, list))
            and len(left) == len(right)
        ):
            return tuple(joined(a, b) for a, b in zip(left, right, strict=True))
        return joined(left, right)

    def call_with_each(
        self, choice: Box, function: Function, args: list[Any], named: dict[str, Any], node: ast.AST
    ) -> Any:
        """What a call gives for each value that an argument may have, one after the other."""
        results = []
        self.choosing = True
        try:
            for option in choice.options:
                own = [option if a is choice else a for a in args]
                others = {k: option if v is choice else v for k, v in named.items()}
                results.append(self.call_function(function, own, others, node))
        finally:
            self.choosing = False
        return self.join_values(*results)


def _names(values: tuple[Any, ...]) -> set[str]:
    """The last names of what lies outside the program among some values."""
    return {v.name.rpartition(".")[2] for v in values if isinstance(v, Dotted)}


def _reads_data(hook: Any) -> bool:
    """Whether a forward hook looks at what goes through its module, not at the module alone."""
    if not isinstance(hook, Function):
        return True
    arguments = hook.node.args
    given = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs][1:]
    given += [each for each in (arguments.vararg, arguments.kwarg) if each is not None]
    names = {each.arg for each in given}
    body = hook.node.body if isinstance(hook.node.body, list) else [hook.node.body]
    read = (node for statement in body for node in ast.walk(statement))
    return any(isinstance(node, ast.Name) and node.id in names for node in read)
