"""One-line mistakes in method, decoding, adapters, checkpoints and configuration; each must fail a test of quick."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """A line that somebody might write.

    Attributes:
        file: below the package.
        old: a fragment of one line, once in the file.
        new: what stands there instead.
        harm: what a user would get.
        tests: files below tests/ that most likely fail.
    """

    file: str
    old: str
    new: str
    harm: str
    tests: tuple[str, ...]


MUTANTS: list[Mutant] = []


def _of(file: str, *tests: str) -> _Adder:
    return _Adder(file, tests)


class _Adder:
    def __init__(self, file: str, tests: tuple[str, ...]) -> None:
        self.file, self.tests = file, tests

    def __call__(self, old: str, new: str, harm: str) -> None:
        MUTANTS.append(Mutant(self.file, old, new, harm, self.tests))


m = _of("method/answers.py", "unit/method/test_answers.py", "unit/method/test_votes.py")
m('_THOUSANDS.sub(lambda match: match[0].replace(",", ""), bare)', "bare", '"1,000" and "1000" are two answers')
m('leaders[derive_seed("vote", seed) % len(leaders)]', "leaders[0]", "a tie always goes to the first of the alphabet")
m("math.fsum(-p * math.log(p) for", "math.fsum(-p * math.log2(p) for", "entropies of votes are in bits, not in nats")
m("return label not in NON_ANSWERS and label ==", "return label ==", "two non-answers confirm each other")
m('"open" if "or" in', '"yes_no" if "or" in', '"is it red or blue?" is answered by yes or no')
m("ranked[0], ranked[0] - ranked[1],", "ranked[0], ranked[0],", "the margin ignores the second answer")
m("if len(integers) == 1 else OTHER", "if integers else OTHER", '"2 or 3" counts as one of the two')
m('and char not in "%#"', "", '"50%" and "50" are the same answer')

m = _of("method/answers.py", "unit/method/test_answers.py")
m("total, current = max(current, 1) * 1000, 0", "total, current = 1000, 0", '"two thousand" is 1000')
m("return total + current", "return max(total, current)", '"one thousand two" is 1000')

m = _of("method/prompts.py", "unit/method/test_prompts.py")
m("if not 3 <= len(words) <= max_words:", "if len(words) > max_words:", '"Why?" passes the gate')
m('if question.count("?") != 1:', 'if question.count("?") < 1:', "two questions in one pass the gate")
m("pairs.setdefault(question.casefold(), (question, answer))", "pairs[question.casefold()] = (question, answer)",
  "of two equal questions the last answer counts")  # fmt: skip
m(
    'framing.replace("{question}", question)',
    'framing.replace("{question}", question.rstrip("?"))',
    "questions lose their mark",
)
m(
    "[:MAX_SPEC_QUESTIONS], len(written))",
    "[:MAX_SPEC_QUESTIONS], len(pairs))",
    "dropped questions do not lower a spec's quality",
)

m = _of("method/token_entropy.py", "unit/method/test_token_entropy.py")
m("position < end and position + len(piece) > start", "position < end", "tags before the answer count as uncertainty")
m("chosen = chosen[:tokens]", "chosen = chosen[-tokens:]", "the last tokens of an answer are measured")
m("(below + 0.5 * equal)", "(below + equal)", "a value among equal ones is at the 100th percentile")
m("return max(chosen) if reduce ==", "return min(chosen) if reduce ==", "the surest token tells the uncertainty")

m = _of("method/rewards.py", "unit/method/test_similarity.py")
m("clamp(0.0, n - 1.0) / (n - 1)", "clamp(0.0, n - 1.0) / n", "diversity depends on the number of candidates")
m(
    "+ 0.5 * unit_similarity(image, prompt)",
    "+ 0.5 * unit_similarity(caption, prompt)",
    "the drawing is not looked at",
)

m = _of("method/rewards.py", "unit/method/test_rewards.py")
m("vote.majority_share <= 1.5 /", "vote.majority_share < 1.0 /", "questions on which no two answers agree are paid")
m("* vote.shares[label] ** 0.7", "* vote.shares[vote.majority] ** 0.7", "a lone dissenter is punished like a bloc")
m("and ste_percentile < 0.5 and", "and", "hard questions that all answer alike are capped")
m("min_agreement <= vote.majority_share < 1.0", "min_agreement <= vote.majority_share <= 1.0", "unanimous votes train")
m("(info if label == vote.majority else -0.25 * info)", "info", "disagreeing with the majority is rewarded")

m = _of("method/rewards.py", "unit/method/test_generation_rewards.py")
m("vote.majority_share >= 2 / 3", "vote.majority_share > 2 / 3", "two of three answers give no reference")
m("for name, weight in weights.items()) / whole", "for name, weight in weights.items())", "no drawing earns 1")
m("- 0.2 * only_yes_no", "- 0.0 * only_yes_no", "specs of yes/no questions cost nothing")
m("else 0.20 * scores.contradiction", "else -0.20 * scores.contradiction", "contradictions are rewarded")

m = _of("method/losses.py", "unit/method/test_policy.py")
m("[(reward - mean) * n / (n - 1) for", "[(reward - mean) for", "an answer is compared with itself too")
m("self.momentum * self.value + (1 - self.momentum) *", "(1 - self.momentum) * self.value + self.momentum *",
  "the baseline forgets at another rate")  # fmt: skip
m("math.exp((reward - best) / tau)", "math.exp((reward - best) * tau)", "a small temperature flattens the weights")

m = _of("method/losses.py", "unit/method/test_policy.py")
m("return -torch.minimum(", "return -torch.maximum(", "the clip bounds nothing")
m("torch.exp(logprobs - old.detach())", "torch.exp(old.detach() - logprobs)", "rewarded answers become less likely")
m("torch.expm1(difference) - difference", "-difference", "the KL estimate can be negative")
m("(mean_kl - self.target) / self.target", "(self.target - mean_kl) / self.target", "more KL lowers its weight")

m = _of("method/replay.py", "model/steps/test_replay.py", "model/steps/test_update.py")
m("min(max(self.nats or 0.0, LEAST_NOISE[dtype]), MOST_NOISE)", "max(self.nats or 0.0, LEAST_NOISE[dtype])",
  "a noisy model trains under a wrong adapter unnoticed")  # fmt: skip
m("if kl / tokens > limit:", "if kl / tokens > 100 * limit:", "scores of another policy pass for rounding")

m = _of("models/decoding/sampling.py", "model/decoding/test_sampling.py")
m("[request.seed for request in requests]", "[requests[0].seed for request in requests]", "all answers are the same")
m("owners = [owners[row] for row in going]", "owners = going", "tokens go to the wrong answer once some have ended")
m("token_entropy(logits)])", "token_entropy(policy)])", "uncertainty depends on the temperature")
m("_Completion(*of_request) for of_request in", "_Completion(of_request[0], each[0]) for of_request in",
  "requests share the length limit of the first")  # fmt: skip
m(
    "self.tokens.append((token, logprob, entropy))",
    "self.tokens.append((token, -logprob, entropy))",
    "log-probs are positive",
)

m = _of("models/decoding/sampling.py", "unit/method/test_token_entropy.py", "model/decoding/test_sampling.py")
m("torch.softmax(logits.float(), dim=-1)", "torch.softmax(logits, dim=-1)", "entropies are rounded to 16 bits")
m("logits.index_fill(-1, suppressed, -torch.inf) / temp", "logits / temp", "image codes are sampled as text")

m = _of("models/decoding/scoring.py", "model/decoding/test_scoring.py", "model/decoding/test_scoring_gradients.py")
m("(policy.exp() * (policy - reference)", "(reference.exp() * (policy - reference)", "KL has the wrong sign")
m("row * width + start + step", "row * width + step", "answers are scored where the prompt stands")
m("reference = policy_logprobs(raw_logits(model, base_rows), ", "reference = policy_logprobs(raw_logits(model, rows), ",
  "the base policy is the trained one, and KL is 0")  # fmt: skip
m("with active(), running_again():", "with running_again():", "recomputed layers learn without their adapter")

m = _of(
    "models/decoding/prefix_tree.py",
    "model/decoding/test_tree.py",
    "model/decoding/test_scoring.py",
    "model/decoding/test_scoring_gradients.py",
)
m("past = rows.visible[:, None, :] & real[:, :, None]", "past = rows.visible[:, None, :] | real[:, :, None]",
  "padding in the middle of a row is attended to")  # fmt: skip
m("[segment.advance for segment in segments]", "[len(segment.embeds) for segment in segments]",
  "text behind a picture is at the wrong position")  # fmt: skip
m("rows.counter + 1, rows.axes", "rows.counter, rows.axes", "all new tokens are at one position")
m("device=device), (size - 1).clamp(min=0)]", "device=device), -1]", "short prompts are answered from their padding")

m = _of("models/decoding/prefix_tree.py", "model/decoding/test_prefill.py", "model/decoding/test_images.py")
m("if entry.version == version and all(", "if all(", "a role reads pictures under another role's adapter")
m("entry.version[0] != version[0] or entry.version == version]", "True]", "prefixes of old weights stay in memory")

m = _of("models/decoding/feature_cache.py", "model/decoding/test_images.py")
m("self._entries.pop(key, None)", "None", "a new picture is mistaken for a deleted one")

m = _of("models/decoding/cache_layers.py", "model/decoding/test_scoring_gradients.py", "model/decoding/test_tree.py")
m("keys.index_select(0, rows), values.index_select(0, rows)", "keys.detach()[rows], values.detach()[rows]",
  "no gradient flows through prompt and picture")  # fmt: skip
m("if not _again.get():", "if True:", "recomputing keeps the activations that it should save")

m = _of("models/decoding/compiled.py", "model/decoding/test_compiled.py")
m("self._cursor += 1", "self._cursor += 0", "compiled passes overwrite the last token")
m("rows.counter.index_select(0, parents)", "rows.counter[:count]", "forked rows continue at another row's position")

m = _of("models/decoding/causal_model.py", "model/decoding/test_sampling.py")
m("split_special_tokens=not special", "split_special_tokens=False", "text of a question can end its own turn")

m = _of("models/decoding/sampling.py", "model/decoding/test_pieces.py")
m("max(ends[-1], len(commonprefix([prefix, text])))", "len(commonprefix([prefix, text]))", "pieces of text overlap")

m = _of("models/decoding/packed_vision.py", "model/decoding/test_packed_vision.py")
m("row.index_select(0, gathered.back)", "row", "patches of pictures are mixed up")

m = _of("models/decoding/prompt_embedding.py", "model/decoding/test_prompt_embedding.py")
m("states - self._centres.index_select(0, kinds)", "states", "all embeddings are alike")

m = _of("models/lora.py", "model/lora/test_lora.py", "model/lora/test_files.py")
m('"lora", role.value, name, path)', '"lora", name, path)', "all roles start as the same adapter")
m("layer._active_adapter = [role.value]", "layer._active_adapter = [*layer.lora_A]", "the adapters of all roles add up")
m("self._activate(before)", "self._activate(None)", "nested use switches the outer adapter off")
m('("peft_type", "r", "lora_alpha")', '("peft_type", "r")', "an adapter of another alpha is loaded")
m("in expected.keys() | actual.keys() if", "in expected.keys() if", "an adapter of a larger model is loaded in part")
m("*(weight._version for", "*(0 for", "caches survive an optimizer step")

m = _of("models/adapted_linear.py", "model/adapters/test_adapted_linear.py")
m("weight.t() * self.scaling[name]", "weight.t()", "alpha has no effect over a bfloat16 base")
m(".mul_(ctx.scaling)", "", "gradients of B miss alpha")
m('(found := getattr(down, "shadowed", None)) != state', '(found := getattr(down, "shadowed", None)) is None',
  "a bfloat16 model goes on with the adapter it began with")  # fmt: skip

m = _of("training/optimizer.py", "unit/training/test_optimizer.py")
m("if not math.isfinite(norm) or not self._state_is_finite():", "if not self._state_is_finite():",
  "a gradient that is NaN destroys the adapter")  # fmt: skip
m("(self.parameters.values(), self.max_grad_norm)", "(self.parameters.values(), math.inf)", "gradients are not clipped")
m("if norm == 0.0:", "if norm < 0.0:", "weight decay moves a role that learns nothing")
m('device = "cpu" if key == "step" else', 'value, device = torch.zeros_like(value), "cpu" if key == "step" else',
  "a resumed run starts with empty moments")  # fmt: skip

m = _of("training/schedule.py", "unit/training/test_schedule.py")
m("(step - 1) % (u + g) < u", "step % (u + g) < u", "the first step is of the wrong kind")

m = _of("training/state.py", "model/training/test_checkpoint.py")
m("random.setstate((version, tuple(internal), gauss))", "random.getstate()", "a plugin's draws differ after a resume")
m("np.random.set_state((name,", "(lambda *_: None)((name,", "a plugin's draws differ after a resume")

m = _of("training/checkpoint.py", "model/training/test_checkpoint.py")
m("if good >= KEEP:", "if good >= 1:", "only one good checkpoint is kept")
m("optimizer.restore(load_file(", "dict(load_file(", "a resumed run starts with empty moments")

m = _of("training/optimizer.py", "model/training/test_checkpoint.py")
m("if value.shape != expected or", "if", "moments of another model are restored")

m = _of("training/checkpoint_files.py", "model/training/test_checkpoint.py")
m("if not fits:", "if False:", "a damaged file is resumed from")
m('found - hashes.keys() - {"manifest.json"}', "set()", "files that nobody wrote are taken for part of a checkpoint")
m("if path.is_symlink() or not (path", "if not (path", "a link out of the folder is followed")
m("path.name), reverse=True)", "path.name), reverse=False)", "a run resumes from its oldest checkpoint")

m = _of("config/seeding.py", "unit/config/test_seeding.py")
m('f"{type(p).__name__}:{p}"', 'f"{p}"', 'the seeds of 1 and of "1" are equal')

m = _of("config/strict_yaml.py", "unit/runs/test_configuration.py")
m("if key.value in seen:", "if False:", "of two equal keys one is dropped silently")
m('and "${" in event.value:', 'and "$${" in event.value:', "a configuration can read the environment")
m('"int": r"[-+]?(?:0|[1-9][0-9]*)"', '"int": r"[-+]?[0-9]+"', "010 is a number")
m("if len(raw) > MAX_BYTES:", "if False:", "a huge file is parsed")

m = _of("runs/configuration.py", "unit/runs/test_configuration.py")
m("find_manifest(backbone).defaults), *layers]", "find_manifest(backbone).defaults)][:0] + [*layers]",
  "a backbone's recommended settings are ignored")  # fmt: skip
m("for name, values in layers for key", "for name, values in reversed(layers) for key",
  "a bad value is blamed on the wrong file")  # fmt: skip

m = _of("models/weights/inventory.py", "unit/models/weights/test_inventory.py")
m('if not parts or ".." in parts or', "if not parts or", "an index can name a file outside of its folder")
m("if tensor.end > size:", "if tensor.end > size + 8:", "a download that is not complete is loaded")
m("if name in stored:", "if False:", "of two checkpoints in one folder some tensors of each are loaded")

m = _of("models/weights/loader.py", "unit/models/weights/test_loader.py")
m("return not (self.missing or self.unexpected or self.misshapen)", "return not (self.missing or self.unexpected)",
  "tensors of another shape count as a complete model")  # fmt: skip
m(
    '("unexpected", () if allow_unexpected else self.unexpected),',
    '("unexpected", ()),',
    "weights of a larger model load",
)

m = _of("models/weights/merge.py", "unit/models/weights/test_merge.py")
m("torch.float32 if float32 else values.dtype", "values.dtype", "an export in float32 holds rounded numbers")
m("if role.value not in layer.lora_A:", "if False:", "a layer without the role ends the export with a KeyError")

m = _of("method/context.py", "model/steps/test_understanding_step.py", "model/steps/test_ablations.py")
m("derive_seed(self.config.seed, self.number, *path)", "derive_seed(self.config.seed, *path)",
  "every step draws the same random numbers")  # fmt: skip

m = _of("method/understanding.py", "model/steps/test_understanding_step.py")
m(
    "temperature=0.0)] * len(measured)",
    "config.solve.temperature)] * len(measured)",
    "STE is measured on sampled answers",
)
m("rewards in zip(learning, groups, strict", "rewards in zip(voted, groups, strict",
  "rewards go to other questions than those they are of")  # fmt: skip
m("frame(text, framing), image, seed(", "frame(text, CANONICAL_FRAMING), image, seed(", "seven framings are one")

m = _of("method/generation.py", "model/steps/test_generation_step.py")
m("(_, spec) in enumerate(specified, start=first)", "(_, spec) in enumerate([specified[0]] * len(specified))",
  "all prompts draw the first one")  # fmt: skip
m('vote(labels, ctx.seed("judge", i)).majority', "labels[0]", "one framing judges the drawings")

m = _of("method/updates.py", "model/steps/test_update.py")
m("+ beta * divergence.sum()", "- beta * divergence.sum()", "KL to the base is rewarded")
m("if self.old is None:", "if True:", "later inner steps are never clipped")

m = _of("method/generator_updates.py", "model/steps/test_generator_update.py", "model/steps/test_ablations.py")
m("((signals * scored.loss).sum() + penalty)", "(scored.loss.sum() + penalty)", "all candidates teach alike")
m(
    "(new, drawing.first(new), drawing.signal)",
    "(new, new, drawing.signal)",
    "later inner steps on drawings are never clipped",
)

m = _of("method/ablations.py", "model/steps/test_ablations.py", "model/steps/test_understanding_step.py")
m(
    'return base if self.name == "base_ratio" else first',
    "return base",
    "the policy ratio divides by the base model",
)
