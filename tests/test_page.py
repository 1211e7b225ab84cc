"""The page: train.py can be read from top to bottom, and hides neither forward, backward nor step."""

import ast
import builtins

from conftest import ROOT

SOURCE = (ROOT / "train.py").read_text(encoding="utf-8")
TREE = ast.parse(SOURCE)
MAIN = next(node for node in TREE.body if getattr(node, "name", "") == "main")
FORWARD_BACKWARD = next(node for node in MAIN.body if getattr(node, "name", "") == "forward_backward")
LOOP = next(node for node in MAIN.body if isinstance(node, ast.For))
TORCH_OWN = {"optimizer", "scaler", "model", "torch", "loss", "loss_sum", "entry"}  # objects whose methods are not ours


def lines_of(node: ast.stmt) -> int:
    return node.end_lineno - node.lineno + 1


def helpers(*nodes: ast.AST) -> set[str]:
    """The calls that are neither torch's nor Python's own."""
    calls = {ast.unparse(n.func) for node in nodes for n in ast.walk(node) if isinstance(n, ast.Call)}
    foreign = {call for call in calls if call.split(".")[0].split("(")[0] in TORCH_OWN or call in dir(builtins)}
    return calls - foreign - {"scaler.scale(loss / supervised).backward"}


def outside_names(*nodes: ast.AST) -> set[str]:
    """What they read and never assign, without modules, types and Python's own: what a reader must have in mind."""
    names = [name for node in nodes for part in node.body for name in ast.walk(part) if isinstance(name, ast.Name)]
    names += [
        name for node in nodes if isinstance(node, ast.For) for name in (*ast.walk(node.target), *ast.walk(node.iter))
    ]
    names = [name for name in names if isinstance(name, ast.Name)]
    assigned = {name.id for name in names if isinstance(name.ctx, ast.Store)}
    assigned |= {argument.arg for node in nodes if isinstance(node, ast.FunctionDef) for argument in node.args.args}
    assigned |= {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    return {name.id for name in names} - assigned - set(dir(builtins)) - {"torch"}


def test_it_fits_on_the_page():
    """The whole loop is counted, to its last line, and not only the part of it that learns."""
    assert len(SOURCE.splitlines()) <= 150
    assert lines_of(MAIN) <= 110
    assert lines_of(FORWARD_BACKWARD) + lines_of(LOOP) <= 40


def test_a_reader_keeps_few_names_in_mind():
    assert len(helpers(FORWARD_BACKWARD, LOOP)) <= 18, sorted(helpers(FORWARD_BACKWARD, LOOP))
    assert len(outside_names(FORWARD_BACKWARD, LOOP)) <= 18, sorted(outside_names(FORWARD_BACKWARD, LOOP))


def test_forward_backward_and_step_stand_on_it_in_their_order():
    inside, around = ast.unparse(FORWARD_BACKWARD), ast.unparse(LOOP)
    assert 0 < inside.index("loss_fn(model, ") < inside.index(".backward()")
    steps = ("['lr'] = ", "forward_backward", "unscale_(", "clip_grad_norm_(", "scaler.step(optimizer)", "zero_grad(")
    places = [around.index(step) for step in steps]
    assert places == sorted(places)


def test_no_rank_is_asked_by_name():
    """What every process must call stands under no test of the rank, and when it is called they all know alike."""
    assert "is_main" not in SOURCE and "ranks.rank" not in SOURCE


def test_the_order_in_which_a_step_is_logged_and_saved():
    """The sums of the log are saved empty when a step does both; the entry's clock and memory are without validation;
    whether a step counted is known before either."""
    around = ast.unparse(LOOP)
    order = ("guard.settle()", "metrics.entry(", "validator.loss(", "metrics.write(", "checkpoints.save(")
    places = [around.index(call) for call in order]
    assert places == sorted(places)
