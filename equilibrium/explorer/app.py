"""The page itself: controls, and what ``answer`` and ``page`` make of them; marimo runs this file."""

import marimo

app = marimo.App(width="full", app_title="Contracting Equilibria")


@app.cell
def _():
    import json
    import tempfile
    import time
    from dataclasses import asdict, replace
    from pathlib import Path

    import marimo as mo
    import torch

    from contracting.errors import ContractingError
    from equilibrium.explorer import page
    from equilibrium.explorer.answer import answer, growing
    from equilibrium.explorer.command import opened
    from equilibrium.explorer.script import script
    from equilibrium.explorer.setting import ACTIVATIONS, EXAMPLES, FLOWS, TYPED, Setting, drawn, parsed, written

    torch.set_num_threads(1)
    return (
        ACTIVATIONS, ContractingError, EXAMPLES, FLOWS, Path, Setting, TYPED, answer, asdict, drawn, growing, json, mo,
        opened, page, parsed, replace, script, tempfile, time, written,
    )  # fmt: skip


@app.cell
def _(EXAMPLES, TYPED, mo, opened):
    known = {**({} if opened() is None else {"the opened file": opened()}), **EXAMPLES}
    choice = mo.ui.dropdown([*known, "random"], value=next(iter(known)), label="start from")
    units = mo.ui.slider(*TYPED, value=2, label="units", show_value=True)
    seed = mo.ui.slider(0, 99, value=0, label="seed", show_value=True, debounce=True)
    upload = mo.ui.file(label="a saved problem or a checkpoint", kind="button")
    return choice, known, seed, units, upload


@app.cell
def _(ContractingError, Path, Setting, choice, drawn, known, mo, page, seed, tempfile, units, upload):
    base, trouble = known.get(choice.value) or drawn(units.value, seed.value), None
    if upload.value:
        with tempfile.TemporaryDirectory() as _folder:
            _path = Path(_folder, "uploaded")
            _path.write_bytes(upload.value[0].contents)
            try:
                base = Setting.read(_path)
            except ContractingError as _error:
                trouble = mo.Html(page.refused(str(_error)))
    return base, trouble


@app.cell
def _(ACTIVATIONS, FLOWS, TYPED, base, mo, written):
    weight = mo.ui.text_area(value=written(base.weight), label="W", rows=base.size, debounce=True)
    settled = {"show_value": True, "debounce": True}  # a value counts when the slider is let go
    skewness = mo.ui.slider(-3, 3, 0.05, value=base.skewness, label="times the skew part", **settled)
    activation = mo.ui.dropdown(ACTIVATIONS, value=base.activation, label="activation")
    flow = mo.ui.dropdown(list(FLOWS), value=base.flow, label="flow")
    step = mo.ui.slider(0.05, 3, 0.05, value=base.step, label="its step α", **settled)
    typed = base.size <= TYPED[1]
    inputs = mo.ui.array(
        [
            mo.ui.slider(-3, 3, 0.05, value=min(max(round(20 * q) / 20, -3), 3), label=f"q{i + 1}", **settled)
            for i, q in enumerate(base.q if typed else ())
        ]
    )
    names = [str(unit + 1) for unit in range(base.size)]
    first = mo.ui.dropdown(names, value="1", label="across: unit")
    second = mo.ui.dropdown(names, value="2", label="up: unit")
    return activation, first, flow, inputs, second, skewness, step, typed, weight


@app.cell
def _(activation, choice, first, flow, inputs, mo, second, seed, skewness, step, trouble, typed, units, upload, weight):
    mo.vstack(
        [
            mo.md("### A small equilibrium network: z = σ(Wz + q), its flow, its certificates, its solvers"),
            mo.hstack([choice, *([units, seed] if choice.value == "random" else []), upload], justify="start"),
            mo.hstack(
                [
                    *([weight] if typed else []),
                    mo.vstack([skewness, activation, flow, step]),
                    mo.vstack([*inputs.elements, mo.hstack([first, second], justify="start")]),
                ],
                justify="start",
                gap=2,
            ),
            *([] if trouble is None else [trouble]),
        ]
    )


@app.cell
def _(
    ContractingError, activation, base, first, flow, inputs, mo, page, parsed, replace, second, skewness, step, typed,
    weight,
):  # fmt: skip
    setting = None
    try:
        rows, q = (parsed(weight.value), tuple(inputs.value)) if typed else (base.weight, base.q)
        setting = replace(
            base, weight=rows, q=(*q, *[0.0] * len(rows))[: len(rows)], activation=activation.value, flow=flow.value,
            step=step.value, skewness=skewness.value,
        )  # fmt: skip
    except ContractingError as _error:
        mo.output.replace(mo.Html(page.refused(str(_error))))
    plane = (int(first.value) - 1, int(second.value) - 1)
    if plane[0] == plane[1] or max(plane) >= (setting or base).size:
        plane = (0, 1)
    return plane, setting


@app.cell
def _(ContractingError, answer, asdict, growing, json, mo, page, plane, script, setting, time):
    between = 0.4  # Seconds between two pictures of an answer that grows; a picture takes 15 ms.

    def shown(found, when):
        inside = page.picture(found, plane=plane) + page.tables(found)
        return mo.Html(f'<div id="answer" data-when="{when}">{inside}</div>')

    def kept(found):
        """What can be taken away from the page."""
        lines = script(found) if found.certificates else ""
        files = [
            mo.download(page.picture(found, plane=plane).encode(), "explorer.svg", label="the picture"),
            mo.download(json.dumps(asdict(found.setting)).encode(), "problem.json", label="the problem"),
            mo.download(lines.encode(), "explorer.py", label="the script"),
        ]
        return mo.vstack([mo.hstack(files, justify="start"), mo.md(f"```python\n{lines}```")])

    def grow(first):
        """Everything else beside the page, which answers the next slider meanwhile; that one ends this thread."""
        thread, last = mo.current_thread(), time.monotonic()
        found = first
        for found in growing(first):
            if thread.should_exit:
                return
            if time.monotonic() - last > between:
                mo.output.replace(shown(found, "growing"))
                last = time.monotonic()
        whole = mo.vstack([shown(found, "complete"), kept(found)])
        if not thread.should_exit:
            mo.output.replace(whole)

    if setting is not None:
        try:
            _found = answer(setting)
            mo.output.replace(shown(_found, "at once"))
            mo.Thread(target=grow, args=(_found,)).start()
        except ContractingError as _error:
            mo.output.replace(mo.Html(page.refused(str(_error))))


if __name__ == "__main__":
    app.run()
