"""Tab completion: `eval "$(sora completion bash)"` completes verbs, groups, options and keys (also: zsh, fish)."""

from __future__ import annotations

from collections.abc import Sequence

BASH = r"""_sora_complete() {
    local line="${COMP_LINE:0:COMP_POINT}" word prefix found
    word="${line##* }"
    prefix="${word%"${COMP_WORDS[COMP_CWORD]}"}"
    # bash cuts words at '=' and ':', and replaces only the last piece
    [[ "${COMP_WORDS[COMP_CWORD]}" == "=" || "${COMP_WORDS[COMP_CWORD]}" == ":" ]] && prefix="$word"
    COMPREPLY=()
    while IFS= read -r found; do
        [[ -n "$found" ]] && COMPREPLY+=("${found#"$prefix"}")
    done < <("${COMP_WORDS[0]}" completion words "$line" 2>/dev/null)
    [[ ${#COMPREPLY[@]} -eq 1 && "${COMPREPLY[0]}" == *= ]] && compopt -o nospace
    [[ ${#COMPREPLY[@]} -gt 1 ]] && compopt -o nosort 2>/dev/null
    return 0
}
complete -o bashdefault -o default -F _sora_complete sora
"""
ZSH = r"""#compdef sora
_sora() {
    local -a found
    found=("${(@f)$(sora completion words "${LBUFFER}" 2>/dev/null)}")
    [[ -z "${found[*]}" ]] && { _files; return }
    compadd -Q -S '' -- "${found[@]}"
}
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }
compdef _sora sora
alias sora='noglob sora'  # data.folders=[data/world] is no pattern of files
"""
FISH = r"""complete -c sora -f -a '(sora completion words (commandline -cp) 2>/dev/null)'
"""
SHELLS = {"bash": BASH, "zsh": ZSH, "fish": FISH}
DASHED = ("--help", "--config-dir", "--allow", "--cfg", "--multirun")


def main(words: Sequence[str]) -> int:
    """Print a shell's completion script, or (`words LINE`) the candidates for the end of a command line."""
    if len(words) == 2 and words[0] == "words":
        print("\n".join(candidates(words[1])))
        return 0
    if len(words) != 1 or words[0] not in SHELLS:
        raise ValueError('name your shell, as in: eval "$(sora completion bash)"; the shells: ' + ", ".join(SHELLS))
    print(SHELLS[words[0]], end="")
    return 0


def candidates(line: str) -> list[str]:
    """The candidates for the last word of an incomplete command line, as whole words (`dit=s_2`, `seed=`)."""
    from sora.config.command_line.verbs import verbs

    typed = line.split(" ")[1:]
    if len(typed) <= 1:
        start = typed[0] if typed else ""
        return [word for word in [*verbs(), "completion", "--help", "--version"] if word.startswith(start)]
    verb, *before, last = [typed[0], *(word for word in typed[1:-1] if word), typed[-1]]
    if verb == "completion":
        return [shell for shell in SHELLS if shell.startswith(last)]
    if verb not in verbs():
        return []
    if last.startswith("-"):
        return [word for word in DASHED if word.startswith(last)]
    return [word for word in _settings(verb, before, last) if word.startswith(last)]


def _settings(verb: str, before: Sequence[str], last: str) -> list[str]:
    """Groups with their options, and keys, of a verb with the options chosen so far. Keys below a dot appear once the part before it is
    typed."""
    from sora.config import own
    from sora.config.command_line.flags import parse
    from sora.config.compose import compose, config_dir, groups
    from sora.config.targets import TARGET
    from sora.system.own_modules import named

    targets: list[str] = []
    try:
        flags = parse(before)
        with own.naming(flags.own):
            composed = compose(verb, flags.overrides, flags.folders)
            targets = [f"{module}.{name}" for module in named() for name in own.definitions(module)]
        folders = flags.folders
    except ValueError:
        composed, folders = compose(verb, []), []
    available = groups([config_dir(), *folders])
    group, equals, option = last.partition("=")
    if equals and group.endswith(f".{TARGET}"):
        return [f"{group}={target}" for target in targets]
    if equals:
        start, comma, _ = option.rpartition(",")  # sweeps: dit=s_2,b<tab>
        return [f"{group}={start}{comma}{name}" for name in available[group]] if group in composed.choices and group in available else []
    keys = [key for key in composed.keys if not key.endswith("_target_")]
    tops = dict.fromkeys(key if "." not in key else f"{key.split('.')[0]}." for key in keys)
    inside = "." in last
    words = [f"{name}=" for name in composed.choices if name in available]
    words += [f"{own.KEY}=["] if not inside else []
    words += [f"{key}=" for key in keys] if inside else [key if key.endswith(".") else f"{key}=" for key in tops]
    return list(dict.fromkeys(words))
