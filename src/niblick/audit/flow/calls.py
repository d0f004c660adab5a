"""Calls of functions, classes, models, optimizers, containers, and whatever lies outside."""

from __future__ import annotations

import ast
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from niblick.audit.flow.boxes import Box, collect, is_token, merge, snapshot
from niblick.audit.flow.figures import shows_after
from niblick.audit.flow.learning import STATE_NAMES, Learning
from niblick.audit.flow.lengths import Rank
from niblick.audit.flow.methods import module_kind, small
from niblick.audit.flow.objects import (
    Bound,
    Class,
    Dotted,
    Function,
    Instance,
    Module,
    Namespace,
    Optimizer,
)
from niblick.audit.flow.pure import answered
from niblick.audit.flow.signals import AbortSignal, BreakSignal, ContinueSignal, ReturnSignal
from niblick.audit.words import words

_MAX_DEPTH = 40
_WRAPPERS = words(
    "compile DistributedDataParallel DDP DataParallel FullyShardedDataParallel script jit njit"
    " disable allow_in_graph vmap prange lru_cache cache wraps checkpoint tqdm"
)
_MODULES = tuple(
    words("Module ModuleList nn.Linear nn.Embedding nn.LayerNorm nn.Sequential ModuleDict")
)
_POOL = words("submit map starmap imap imap_unordered")
_OPTIMIZERS = words(
    "SGD Adam AdamW Adagrad RMSprop LBFGS Muon Adamax NAdam RAdam Lion Adafactor"
    " ZeroRedundancyOptimizer"
)


class Calls(Learning):
    """Dispatch of every kind of call."""

    def ex_call(self, node: ast.Call) -> Any:
        callee = self.touch(self.member(node.func))
        args: list[Any] = []
        for arg in node.args:
            if isinstance(arg, ast.Starred):
                args.extend(self.iterate(self.value(arg.value), None))
            else:
                args.append(self.value(arg))
        named: dict[str, Any] = {}
        for keyword in node.keywords:
            value = self.value(keyword.value)
            if keyword.arg is not None:
                named[keyword.arg] = value
            elif isinstance(value, dict):
                named.update({str(k): v for k, v in value.items()})
        return self.call_value(callee, args, named, node)

    def call_value(self, callee: Any, args: list[Any], named: dict[str, Any], node: ast.AST) -> Any:
        if not isinstance(callee, (Function, Class)):
            for arg in (*args, *named.values()):
                function = arg.function if isinstance(arg, Bound) else arg
                if isinstance(function, Function) and self.learning(function):
                    said = getattr(callee, "name", "") or "a call"
                    self.handed[id(function.node)] = (function, said)
        if isinstance(callee, Function):
            return self.call_function(callee, args, named, node)
        if isinstance(callee, Bound):
            return self.call_bound(callee, args, named, node)
        if isinstance(callee, Class):
            return self.instantiate(callee, args, named, node)
        if isinstance(callee, Dotted):
            return self.call_dotted(callee.name, args, named, node)
        if isinstance(callee, Box) and "param" in callee.marks and callee.roots:
            return self.layer(callee, args, named, node)
        if isinstance(callee, Module):
            own = callee.cls.find("forward") if callee.cls is not None else None
            method = own if isinstance(own, Function) else None
            return self.forward(callee, args, named, node, method)
        if isinstance(callee, Instance):
            method = callee.cls.find("__call__") or callee.cls.find("forward")
            if isinstance(method, Function):
                return self.call_function(method, [callee, *args], named, node)
        if isinstance(callee, Namespace) and "__gradient_of__" in callee.attrs:
            return self.gradient_call(callee.attrs, args, named, node)
        if isinstance(callee, Namespace) and "__call__" in callee.attrs:
            given = [*callee.attrs.get("__args__", []), *args]
            both = {**callee.attrs.get("__named__", {}), **named}
            return self.call_value(callee.attrs["__call__"], given, both, node)
        return self.opaque([callee, *args], named, node)

    def layer(self, layer: Box, args: list[Any], named: dict[str, Any], node: ast.AST) -> Any:
        """What a part of a model makes of its input."""
        boxes = self.frozen([layer, *(b for a in (*args, *named.values()) for b in collect(a))])
        return merge(boxes, targets=0, nll=False, marks=self.origin(boxes[1:]) | {"logits"})

    def opaque(self, args: list[Any], named: dict[str, Any], node: ast.AST) -> Any:
        """The result of something not understood: it may depend on everything it was given."""
        boxes = self.frozen([b for a in (*args, *named.values()) for b in collect(a)])
        models = [a for a in (*args, *named.values()) if isinstance(a, Module)]
        out = merge(boxes)
        for model in models:
            out.roots |= {model.leaf}
            out.seen |= self.leaves[model.leaf].seen
        plain = [b for b in boxes if b.marks.isdisjoint({"index", "bytes", "count"})]
        tokens = [b for b in plain if is_token(b)]
        computed = [b for b in boxes if b.roots and not b.nll]
        if computed and len(tokens) == 1 and tokens[0].pos is not None and not models:
            return self.score(merge(computed), tokens[0], node)
        return out

    def call_function(
        self, function: Function, args: list[Any], named: dict[str, Any], node: ast.AST
    ) -> Any:
        if "kernel" in function.marks:
            return self.opaque(args, named, node)
        given = [v for v in (*args, *named.values()) if isinstance(v, Box) and v.options]
        if given and not self.choosing:
            return self.call_with_each(given[0], function, args, named, node)
        follow = partial(self.follow_function, function, args, named, node)
        return answered(self, function, args, named, follow)

    def follow_function(
        self, function: Function, args: list[Any], named: dict[str, Any], node: ast.AST
    ) -> Any:
        if len(self.stack) >= _MAX_DEPTH or self.too_often(function.name):
            return self.unfollowed(function, args, named, node)
        scope = self.bind(function, args, named)
        self.scopes.append((scope, *function.scopes))
        self.outer_names.append({})
        self.maybe_returns.append([])
        self.yields.append([])
        self.stack.append(function.name)
        self.trace.reached.add(function.name)
        self.entered.add(id(function.node))
        quiet = "no_grad" in function.marks
        hooks = self.hooks
        self.no_grad += quiet
        try:
            result = self.run_body(function)
        finally:
            self.no_grad -= quiet
            if self.hooks > hooks and self.hooked:
                self.hooks, self.hooked = hooks, False
            self.stack.pop()
            self.scopes.pop()
            self.outer_names.pop()
            early = self.maybe_returns.pop()
            yielded = self.yields.pop()
        if yielded:
            return yielded[0] if "contextmanager" in function.marks else yielded
        for value in early:
            result = self.join_values(result, value)
        self.mark_hints(function, [*args, *named.values()], result, node)
        self.note_adapters(function, [*args, *named.values()])
        return result

    def unfollowed(
        self, function: Function, args: list[Any], named: dict[str, Any], node: ast.AST
    ) -> Any:
        """A call that goes too deep; where it may learn or write tokens, that is said."""
        if self.learning(function) or any(is_token(b) for a in args for b in collect(a)):
            self.note(f"limit: {function.name} calls itself deeper than it is followed")
        return self.opaque(args, named, node)

    def run_body(self, function: Function) -> Any:
        if isinstance(function.node, ast.Lambda):
            return self.value(function.node.body)
        try:
            self.block(function.node.body)
        except ReturnSignal as signal:
            return signal.value
        except (BreakSignal, ContinueSignal):
            return None
        except AbortSignal as signal:
            if self.maybe_returns[-1] and not signal.final:
                return self.maybe_returns[-1].pop()
            if signal.final or (self.tries and not self.yields[-1] and not self.stubborn):
                raise
            if signal.sure and shows_after(function.node, self.line):
                self.note(f"line {self.line}: not followed beyond an exception")
            return None if self.yields[-1] else Box()
        return None

    def bind(self, function: Function, args: list[Any], named: dict[str, Any]) -> dict[str, Any]:
        """The local names a call starts with."""
        spec = function.node.args
        positional = [a.arg for a in (*spec.posonlyargs, *spec.args)]
        scope: dict[str, Any] = {}
        self.scopes.append(function.scopes or ({},))
        try:
            for name, default in zip(reversed(positional), reversed(spec.defaults), strict=False):
                if name not in named:
                    scope[name] = self.value(default)
            for arg, keyword_default in zip(spec.kwonlyargs, spec.kw_defaults, strict=True):
                if keyword_default is not None and arg.arg not in named:
                    scope[arg.arg] = self.value(keyword_default)
        finally:
            self.scopes.pop()
        for name, value in zip(positional, args, strict=False):
            scope[name] = self.seed_by_name(name, value)
        if spec.vararg is not None:
            scope[spec.vararg.arg] = list(args[len(positional) :])
        accepted = {*positional, *(a.arg for a in spec.kwonlyargs)}
        extra = {k: v for k, v in named.items() if k not in accepted}
        scope.update({k: v for k, v in named.items() if k in accepted})
        if spec.kwarg is not None:
            scope[spec.kwarg.arg] = extra
        for name in accepted:
            if name not in scope:
                scope[name] = self.seed_by_name(name, Box())
        return scope

    def kind_of(self, node: ast.ClassDef, bases: tuple[Any, ...]) -> str:
        for base in bases:
            if isinstance(base, Class) and base.kind != "plain":
                return module_kind(node, True) if base.kind == "tables" else base.kind
            name = base.name if isinstance(base, Dotted) else ""
            if name.endswith(_MODULES):
                return module_kind(node)
            if name.endswith("Optimizer") or name.rsplit(".", 1)[-1] in _OPTIMIZERS:
                return "optimizer"
            if name.endswith("autograd.Function"):
                return "autograd"
            if name.endswith(("NamedTuple", "BaseModel")):
                return "dataclass"
        records = any("dataclass" in ast.dump(decorator) for decorator in node.decorator_list)
        return "dataclass" if records else "plain"

    def instantiate(self, cls: Class, args: list[Any], named: dict[str, Any], node: ast.AST) -> Any:
        self.made.add(id(cls))
        if cls.kind == "module":
            leaf = self.new_leaf("module", cls.name)
            if any(isinstance(a, Module) for a in (*args, *named.values())) or small(cls):
                self.leaves[leaf].marks = frozenset({"adapter"})
            module = Module(cls.name, leaf, cls)
            init = cls.find("__init__")
            own = [f for f in cls.body.values() if isinstance(f, Function) and f is not init]
            if isinstance(init, Function) and any(self.learning(f) for f in own):
                self.call_function(init, [module, *args], named, node)
            elif isinstance(init, Function):
                given = self.bind(init, [module, *args], named)
                module.settings = self.settings_of(cls, init, given)
            return module
        if cls.kind == "optimizer":
            return Optimizer(cls.name, self.roots_in([*args, *named.values()]))
        if cls.kind == "autograd":
            return Box()
        instance = Instance(cls)
        init = cls.find("__init__")
        if isinstance(init, Function):
            self.call_function(init, [instance, *args], named, node)
        elif cls.kind == "dataclass":
            fields = [
                f
                for c in (*[b for b in cls.bases if isinstance(b, Class)], cls)
                for f in c.body.get("__fields__", [])
            ]
            given = {**dict(zip(fields, args, strict=False)), **named}
            whole = {f: cls.body.get(f) for f in fields} if cls.is_row else {}
            instance.attrs.update({**whole, **given})
            post = cls.find("__post_init__")
            if isinstance(post, Function):
                self.call_function(post, [instance], {}, node)
        return instance

    def call_bound(
        self, bound: Bound, args: list[Any], named: dict[str, Any], node: ast.AST
    ) -> Any:
        holder, name = bound.holder, bound.name
        if isinstance(holder, Module):
            return self.module_call(holder, bound, args, named, node)
        if bound.function is not None:
            return self.call_function(bound.function, [holder, *args], named, node)
        if isinstance(holder, Optimizer):
            return self.optimizer_call(holder, name, args, node)
        if isinstance(holder, Box):
            return self.box_call(holder, name, args, named, node)
        if isinstance(holder, (dict, list, tuple, str, bytes, set, range, int, float)):
            return self.container_call(holder, name, args, named, node)
        if isinstance(holder, PurePosixPath):
            return self.path_method(holder, name, args, named)
        if isinstance(holder, Namespace):
            return self.namespace_call(holder, name, args, named, node)
        if isinstance(holder, (Class, Instance)):
            result = self.record_call(holder, name, args, named)
            if result is NotImplemented and name == "apply":
                return self.opaque(args, named, node)
            if result is not NotImplemented:
                return result
        return self.opaque([holder, *args], named, node)

    def box_call(
        self, box: Box, name: str, args: list[Any], named: dict[str, Any], node: ast.AST
    ) -> Any:
        if name == "backward":
            self.backward(box)
            return None
        if name == "data_as":
            return box
        if name.startswith("register_forward") and box.live:
            return self.hook(args, part=True)
        if name in self.native:
            self.mark_native(name, args, node)
        if name == "step" and "param" not in box.marks and box.roots:
            return self.optimizer_call(Optimizer("?", box.roots), name, args, node)
        if name in {"items", "keys", "values"}:
            each = snapshot(box, live=box.live)
            pair = [(known, each) for known in STATE_NAMES]
            return pair if name == "items" else [p[name == "values"] for p in pair]
        result = self.tensor_call(name, [box, *args], named, node, True)
        if name == "numpy" and isinstance(result, Box):
            result.marks |= {"numpy"}
        if result is not NotImplemented:
            return result
        if name in _POOL and args and isinstance(args[0], (Function, Bound, Namespace)):
            return self.pooled(name, args, named, node)
        if name in {"write", "writelines"}:
            self.to_disk(args)
        if name in {"get", "pop", "setdefault"}:
            return self.box_item(box, args[0], node) if args else box
        return self.opaque([box, *args], named, node)

    def pooled(self, name: str, args: list[Any], named: dict[str, Any], node: ast.AST) -> Any:
        """What threads or processes are given to do, done at once."""
        if name != "submit":
            return self.py_map(args, named, node)
        return Namespace({"__done__": self.call_value(args[0], args[1:], named, node)})

    def call_dotted(self, name: str, args: list[Any], named: dict[str, Any], node: ast.AST) -> Any:
        last = name.rsplit(".", 1)[-1]
        if name.startswith("builtins."):
            result = self.builtin(last, args, named, node)
            return self.opaque(args, named, node) if result is NotImplemented else result
        result = self.standard(name, args, named, node)
        if result is not NotImplemented:
            return result
        if last in _WRAPPERS or name == "identity":
            return args[0] if args else Dotted("identity")
        if last in _OPTIMIZERS:
            return Optimizer(last, self.roots_in([*args, *named.values()]))
        if last in words(
            "no_grad inference_mode enable_grad nullcontext autocast set_grad_enabled"
        ):
            off = last == "set_grad_enabled" and args and self.truth(args[0]) is False
            off = off or (last == "inference_mode" and args and args[0] is True)
            return Dotted("torch.no_grad" if off else name)
        if last in words(
            "Parameter Linear Embedding LayerNorm ModuleList Sequential ParameterList"
            " ParameterDict ModuleDict"
        ):
            return self.torch_module(last, args)
        if name.endswith("autograd.grad") and args:
            return self.gradients(args, named)
        if last == "functional_call" and len(args) > 2 and isinstance(args[0], Module):
            method = args[0].cls.find("forward") if args[0].cls else None
            return self.forward(args[0], [*collect(args[2]), args[1]], named, node, method)
        return self.numeric_call(name, last, args, named, node)

    def numeric_call(
        self, name: str, last: str, args: list[Any], named: dict[str, Any], node: ast.AST
    ) -> Any:
        numpy = name.startswith(("np.", "numpy."))
        if last == "get_world_size":
            return int(self.environment.get("WORLD_SIZE", "1"))
        if last == "get_rank":
            return Rank(0)
        if last in {"is_initialized", "is_available"}:
            return True
        if last in {"bos_id", "bos_token_id"}:
            return 1
        if numpy and last == "at" and args and isinstance(args[0], Box):
            args[0].table |= 1
            args[0].val = None
            args[0].held |= self.written([b for a in args[1:] for b in collect(a)])
            self.shared(args[0])
            self.interest += 1
            return None
        changed = self.changing(last, args, named, node)
        if changed is not NotImplemented:
            return changed
        if last in words(
            "save all_reduce barrier synchronize manual_seed seed broadcast destroy_process_group"
        ):
            return args[0] if last in {"all_reduce", "broadcast"} and args else None
        if numpy and last == "nonzero":
            named = {**named, "as_tuple": True}
        result = self.tensor_call(last, args, named, node, False)
        if result is NotImplemented and args and isinstance(args[0], Box):
            result = self.tensor_call(last, args, named, node, True)
        if result is not NotImplemented:
            if numpy and isinstance(result, Box):
                result.marks |= {"numpy"}
            return result
        return self.opaque(args, named, node)
