"""The text of the dataset card; docs/prosg-pf.md is its long form."""

MODES_TEXT = {
    "neutral": "sentences of an artificial grammar, with words that occur nowhere else",
    "interfering": "facts about other entities, with the prompt's own relations",
    "real": "running English prose, held-out documents; rare words are `<unk>`",
    "self": "empty: the model that is tested writes it, up to each distance",
    "task": "begins with `now start :`, then lines that follow every rule of the prompt",
}

CARD = """# ProSG-PF: what is left of a prompt, D tokens later

A synthetic set that measures how a language model with a memory of fixed size forgets its prompt.
The prompt states facts, attributes of a persona and rules; a body of text follows; then one
question whose answer is a single word. Everything is generated from one seed ({seed}).

The paper ProSG (arXiv 2311.01981) used a dataset of its own, of which nothing but its existence is
public. This set is a proposal in its place, not that dataset.

    from datasets import load_dataset

    tests = load_dataset("path/to/this/folder", "interfering", split="iid")

The default configuration is `{first}`.

## Test sets

Each configuration below is a kind of body; sample i has the same prompt and questions in all.
{samples} samples for each number of facts ({facts}), asked after {distances} tokens.

| configuration | body |
| --- | --- |
{modes}

| split | differs from training in |
| --- | --- |
| `iid` | nothing but the seed and the text of the body |
| `new_pairs` | every fact is an (entity, value) pair that training never shows |
| `new_templates` | facts are in the two held-out surface forms of their relation |
| `rules_new` | trigger rules are (trigger, code) pairs that training never shows |
| `long` | distances beyond those trained |
| `dense` | more facts than trained |

Columns: `prompt`; `distances`; `body`, where `body[i]` leads from `distances[i]` to
`distances[i + 1]`; `kinds`, `questions`, `answers`, `updated`, one entry a question (`updated`: the
prompt changed the fact further down, the latest counts); `rule_kinds`, `rule_texts`, `rule_when`,
`rule_say`, one entry a rule; `seed` and `sha256` of the rendered text.

A word is a token ({vocabulary} in `vocab.json`); words are separated by white space and a sentence
ends with ` .`. To score distance d: read `prompt` and `body` up to d, then every question from a
copy of that state, so that no answer leaks into the next. An answer is ranked over the words of
its kind (`groups` and `chance` in `meta.json`).

## Training sequences

`train` and `validation`, if they were built, are a finite sample: `prompt`, `body` with questions
and answers in it, and `scored`, the places (from 0) of those of the body's words that are to be
predicted. Held-out pairs, forms and rules occur in neither.

## Rules

| kind | instruction | a line is right if |
| --- | --- | --- |
| `trigger` | when you read T say C . | C follows each T |
| `periodic` | say W in every n-th line . | it has W, when its number is a multiple of n |
| `prefix`, `format` | start, end every line with W . | W is its first, its last word |
| `forbid` | never say W . | it has no W |
| `counter` | in every n-th line give your A . | it has the persona's A, at multiples of n |

They are in force in the text after `now start :`. `rules` shows text that follows each kind and
text that does not.

## Reproduction

`seeds.json` has the SHA-256 of each file and the seeds of its first and last line; a sample is a
function of its seed and of `world` in `meta.json`.

## Licence

{licence}
"""
