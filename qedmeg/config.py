"""What can be set: the sections of a settings file, each field with its default and meaning."""

from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from qedmeg.settings import Settings


class Columns(Settings):
    """Which column of a row holds what. `a.b` is the field `b` of a column `a` that holds an object.

    A row is a conversation (`messages`) or a problem with its proof (`prompt` and `proof`). Left unset, `messages` is
    taken where there is such a column, else `prompt` or `problem` with `proof`.
    """

    messages: str | None = None
    """A list of {role, content}: an optional system message, then user and assistant in turn, an assistant last."""
    prompt: str | None = None
    """The problem: the user's message."""
    proof: str | None = None
    """The proof: the assistant's message."""
    reasoning_content: str | None = None
    """Optional: what was thought before the proof. Put between <think> and </think> before it."""

    @model_validator(mode="after")
    def _one_layout(self) -> Self:
        if self.messages is not None and (self.prompt or self.proof or self.reasoning_content):
            raise ValueError("give either messages, or prompt and proof, not both")
        if (self.prompt is None) != (self.proof is None):
            raise ValueError("prompt and proof are given together or not at all")
        return self


class DataConfig(Settings):
    """Where the documents come from, what is trained on in them, and how they are packed into steps."""

    train: str
    """Training rows: a .jsonl, .json, .csv or .parquet file, a folder of such files of one kind, or a hub id."""
    validation: str | None = None
    """Validation rows, named in the same way. None: none, or those that validation_fraction takes."""
    validation_fraction: float = Field(default=0.0, ge=0.0, le=0.5)
    """Share of the training rows held out for validation: by a hash of the first user message, so that all proofs of
    one problem fall on one side, whatever the order of the rows and the seed."""
    split: str = "train"
    """Split of `train` where it is a hub id."""
    validation_split: str = "validation"
    """Split of `validation` where it is a hub id."""
    hub_config: str | None = None
    """Configuration of the hub datasets (FineProofs-SFT has `default` and `all`)."""
    revision: str | None = None
    """Branch, tag or commit of the hub datasets."""
    columns: Columns = Columns()
    """Which column holds what."""

    tokenizer: str | None = None
    """A Hugging Face tokenizer folder or hub id, or a sentencepiece .model file. None: the model's own."""
    chat_template: Path | None = None
    """A .jinja file used in place of the tokenizer's chat template."""
    assistant_mask: Literal["template", "prefix"] = "template"
    """How the assistant's tokens, which alone are trained on, are found: `template` by the {% generation %} marks of
    the chat template, `prefix` by rendering the conversation up to each assistant turn, which needs a template whose
    rendering of a longer conversation begins with that of the shorter one; both are checked on every row."""
    max_length: int = Field(default=4096, ge=2)
    """Longest document, in tokens."""
    too_long: Literal["error", "drop"] = "error"
    """What happens to a longer one. It is never truncated: that would lose the end token."""
    cache: Path = Path("~/.cache/qedmeg/documents")
    """Folder for the tokenised documents; a run with the same rows, tokenizer and settings finds them there."""

    tokens_per_microbatch: int = Field(default=4096, ge=2)
    """Most tokens of the packed sequence that a rank computes at a time; it is as long as the step's fullest one."""
    prompts_per_step: int = Field(default=32, ge=1)
    """Documents of an optimizer step, over all ranks."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of the order of the documents."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.max_length > self.tokens_per_microbatch:
            raise ValueError(
                f"max_length {self.max_length} is greater than tokens_per_microbatch {self.tokens_per_microbatch}: "
                "such a document fits in no microbatch; raise tokens_per_microbatch"
            )
        if self.validation is not None and self.validation_fraction > 0:
            raise ValueError("give either validation or validation_fraction, not both")
        return self


class ModelConfig(Settings):
    """The model that is trained."""

    hf: Path | None = None
    """A Hugging Face folder: each rank reads the slices it holds."""
    megatron: Path | None = None
    """A Megatron checkpoint folder, converted or trained, whose weights the run starts from."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.hf is None) == (self.megatron is None):
            raise ValueError("give either model.hf or model.megatron")
        return self


class ParallelConfig(Settings):
    """Sizes of the process groups; data parallelism takes the processes that are left."""

    tp: int = Field(default=1, ge=1)
    """Tensor parallel: ranks that share each matrix."""
    pp: int = Field(default=1, ge=1)
    """Pipeline parallel: stages that share the layers."""
    vpp: int = Field(default=1, ge=1)
    """Virtual pipeline: model chunks on each stage, interleaved."""
    cp: int = Field(default=1, ge=1)
    """Context parallel: ranks that share each sequence."""
    ep: int = Field(default=1, ge=1)
    """Expert parallel: ranks that share the experts of a mixture-of-experts layer."""
    sp: bool = False
    """Sequence parallel: between the matrices, TP ranks share the sequence too."""


class ComputeConfig(Settings):
    """How the model computes."""

    precision: Literal["fp32", "bf16"] = "bf16"
    """Precision of weights and activations; gradients are summed and the optimizer works in fp32."""
    transformer_engine: bool = False
    """Transformer Engine's layers in place of torch's; needs a GPU."""
    fp8: Literal["delayed", "tensorwise", "blockwise"] | None = None
    """FP8 recipe of the matrix products; needs Transformer Engine."""
    recompute: Literal["none", "selective", "full"] = "none"
    """What is computed again in the backward pass to save memory: nothing, attention and MLP, or whole layers."""
    gradient_accumulation_fusion: bool = False
    """Add each weight's gradient straight into its fp32 buffer: by Transformer Engine's layers, or with torch's by a
    kernel of apex; needs a GPU."""


class OptimizerConfig(Settings):
    """AdamW and its learning-rate schedule."""

    lr: float = Field(default=3e-5, gt=0)
    """Highest learning rate."""
    min_lr: float = Field(default=0.0, ge=0)
    """Learning rate at the end of the schedule."""
    schedule: Literal["constant", "linear", "cosine", "wsd"] = "cosine"
    """Course of the learning rate after the warm-up; wsd stays constant and decays linearly at the end."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the learning rate rises from zero."""
    decay_fraction: float = Field(default=0.25, gt=0, le=1)
    """Share of the steps over which wsd decays."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Decoupled weight decay; norms and biases have none."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of the first moment."""
    beta2: float = Field(default=0.95, ge=0, lt=1)
    """Decay of the second moment."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the root of the second moment."""
    clip_grad: float = Field(default=1.0, ge=0)
    """Highest gradient norm; 0 clips nothing."""


class CheckpointConfig(Settings):
    """When checkpoints are written, and which are kept."""

    save_every: int = Field(default=100, ge=1)
    """Steps between checkpoints; there is always one at the end."""
    keep_last: int = Field(default=2, ge=1)
    """Newest checkpoints kept."""
    keep_every: int | None = Field(default=None, ge=1)
    """Checkpoints at multiples of this step are kept for good."""
    background: bool = True
    """Write while training goes on."""


class EndpointConfig(Settings):
    """A language model behind any OpenAI-compatible server."""

    base_url: str
    """Address of the server, such as http://localhost:8000/v1."""
    model: str
    """Name of the model there."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the key; the key itself stands in no file. None: no key."""
    temperature: float | None = Field(default=1.0, ge=0)
    """Sampling temperature; None: the server's own."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    """Share of the probability that tokens are sampled from; None: the server's own."""
    reasoning_effort: Literal["minimal", "low", "medium", "high"] | None = None
    """How long a reasoning model thinks, where the server knows the setting."""
    max_tokens: int | None = Field(default=32768, ge=1)
    """Most tokens of an answer, reasoning included. None: what the server allows."""
    seeded: bool = False
    """Give each call of a scaffold a seed of its own, where the server samples by it: the same run then gives the same
    answers."""

    price_prompt: float = Field(default=0.0, ge=0)
    """Price of a million prompt tokens, in any currency that all models share."""
    price_completion: float = Field(default=0.0, ge=0)
    """Price of a million completion tokens."""

    concurrency: int = Field(default=64, ge=1, le=1000)
    """Most requests under way at a time."""
    timeout_seconds: float = Field(default=600.0, gt=0)
    """Longest wait for the answer to one request."""
    deadline_seconds: float = Field(default=1800.0, gt=0)
    """Longest time for one answer with all of its requests and pauses; waiting for a free place is not counted."""
    attempts: int = Field(default=8, ge=1, le=100)
    """Most attempts at one answer. A request that the server refuses (bad request, wrong key, no such model) is not
    attempted again."""
    backoff_seconds: float = Field(default=1.0, ge=0)
    """The pause before attempt n + 1 is drawn between 0 and 2^(n - 1) times this; a longer Retry-After is kept to."""
    backoff_max_seconds: float = Field(default=60.0, ge=0)
    """Longest such pause that is drawn."""
    hedge_seconds: float | None = Field(default=None, gt=0)
    """After this long without an answer a second request is sent, if a place is free, and the first answer counts; it
    should be a time that few answers take longer than. None: never."""
    breaker_failures: int = Field(default=20, ge=1)
    """After so many requests in a row that got no answer, nothing is sent for a while."""
    breaker_pause_seconds: float = Field(default=30.0, gt=0)
    """For how long; then one request is sent to see whether the server answers again."""

    def _check_place(self) -> None:
        """Raises ValueError where the settings do not say where the model is."""
        address = urlsplit(self.base_url)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise ValueError("base_url should be an address such as http://localhost:8000/v1")
        if address.username or address.password or address.query:
            raise ValueError("base_url holds a user, a password or a query; give the key in api_key_env's variable")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        self._check_place()
        if self.timeout_seconds > self.deadline_seconds:
            raise ValueError(
                f"timeout_seconds {self.timeout_seconds:g} is greater than deadline_seconds {self.deadline_seconds:g}"
            )
        if self.hedge_seconds is not None and self.hedge_seconds >= self.timeout_seconds:
            raise ValueError(
                f"hedge_seconds {self.hedge_seconds:g} is not less than timeout_seconds {self.timeout_seconds:g}: "
                "there would never be a second request"
            )
        return self


class JudgeServerConfig(Settings):
    """A model folder that a vLLM server is started for on this machine, which ends with the program."""

    folder: Path
    """A Hugging Face folder."""
    tp: int = Field(default=1, ge=1)
    """Tensor parallel size."""
    devices: tuple[int, ...] = ()
    """GPUs of this machine for it alone, `tp` of them. None: the last of those that the run sees and neither trains nor
    generates on."""
    max_length: int | None = Field(default=None, ge=2)
    """Longest prompt and answer, in tokens. None: the model's context."""
    kv_cache_gib: float | None = Field(default=None, gt=0)
    """Memory for keys and values. None: a quarter GiB on CPU; with the weights 92 % of a GPU."""
    start_seconds: float = Field(default=900.0, gt=0)
    """Longest wait for it to start."""

    @model_validator(mode="after")
    def _enough_devices(self) -> Self:
        if self.devices and len(set(self.devices)) != self.tp:
            raise ValueError(f"devices {list(self.devices)} are not as many GPUs as tp {self.tp}")
        return self


class JudgeConfig(EndpointConfig):
    """A language model that grades proofs: at an address, or served by whoever grades."""

    base_url: str = ""
    """Address of the server, such as http://localhost:8000/v1. Left out where `serve` is given."""
    model: str = ""
    """Name of the model there. Left out where `serve` is given: then it is the folder's, with a hash of its weights."""
    serve: JudgeServerConfig | None = None
    """A model folder to serve here, in place of base_url."""
    structured: bool = False
    """Ask for structured output (response_format json_schema), where the server has it; else the verdict is read from
    the text of the answer."""
    reference: bool = True
    """Show the judge the reference solution of problems that have one."""
    votes: int = Field(default=1, ge=1)
    """Verdicts asked of this judge for each proof."""

    def _check_place(self) -> None:
        if bool(self.base_url) == (self.serve is not None):
            raise ValueError("give either base_url, the address of a server, or serve, a model folder to start one for")
        if self.serve is not None:
            if self.model or self.api_key_env:
                raise ValueError("model and api_key_env are of a server at base_url; leave them out beside serve")
            return
        super()._check_place()
        if not self.model:
            raise ValueError("model: missing: the name of the model at base_url")


class GraderConfig(Settings):
    """Who grades proofs."""

    judges: tuple[JudgeConfig, ...] = ()
    """Language models that grade. None: the symbolic grader, which knows the embedded problems only."""
    combine: Literal["median", "mean"] = "median"
    """What several votes come to."""
    min_votes: int | None = Field(default=None, ge=1)
    """Fewest votes that make a grade, of those asked for; with fewer it has failed. None: more than half."""
    cache: Path | None = None
    """File that verdicts are kept in; another run with the same judges and prompts takes them from there."""

    @property
    def votes(self) -> int:
        """Votes asked for each proof."""
        return sum(judge.votes for judge in self.judges)

    @property
    def serves(self) -> bool:
        """Whether a server is to be started for a judge."""
        return any(judge.serve is not None for judge in self.judges)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.min_votes is not None and self.min_votes > self.votes:
            raise ValueError(f"min_votes {self.min_votes} is greater than the {self.votes} votes of all judges")
        return self


class SFTConfig(Settings):
    """Supervised fine-tuning."""

    run_dir: Path
    """Folder of the run: checkpoints, logs, TensorBoard. A run that is started again in it goes on."""
    model: ModelConfig
    data: DataConfig
    parallel: ParallelConfig = ParallelConfig()
    compute: ComputeConfig = ComputeConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    epochs: float = Field(default=1.0, gt=0)
    """Passes over the training documents."""
    max_steps: int | None = Field(default=None, ge=1)
    """Optimizer steps, in place of epochs."""
    validate_every: int | None = Field(default=None, ge=1)
    """Steps between validations; None: at each checkpoint."""
    seed: int = Field(default=1234, ge=0)
    """Seed of the model's random states."""
