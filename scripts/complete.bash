# shellcheck shell=bash
# Tab completion of `python -m experiments.<name>`, `python -m scripts.evaluate` and scripts/quickstart:
#   source scripts/complete.bash
# Hydra answers (`-sc query=bash`), but its own script knows only `python file.py`. This one also completes the
# values of a group in a place, such as domain@target=.

_adaptlab_clone=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

_adaptlab_complete() {
    COMPREPLY=()
    local line=${COMP_LINE:0:COMP_POINT}
    local word=${line##*[[:space:]]} words command module="" i
    read -ra words <<<"$line"
    case ${words[0]} in
    *quickstart)
        command=("$_adaptlab_clone/.venv/bin/python" -m experiments.forgetting)
        words=("${words[@]:1}")
        ;;
    *)
        for ((i = 1; i < ${#words[@]}; i++)); do
            if [ "${words[i]}" = -m ]; then module=${words[i + 1]:-} && break; fi
        done
        [ "${words[i]:-}" = -m ] || return 0
        if [ -z "$module" ] || { [ "$module" = "$word" ] && [ $((i + 2)) = ${#words[@]} ]; }; then
            _adaptlab_modules "$word"
            return 0
        fi
        case $module in experiments.* | scripts.*) ;; *) return 0 ;; esac
        command=("${words[@]:0:i+2}")
        words=("${words[@]:i+2}")
        ;;
    esac
    _adaptlab_query "$word"
}

# _adaptlab_modules WORD: the modules that are Hydra apps.
_adaptlab_modules() {
    local room path names=()
    for room in experiments scripts; do
        for path in "$_adaptlab_clone/$room"/[!_]*.py; do names+=("$room.$(basename "$path" .py)"); done
    done
    mapfile -t COMPREPLY < <(compgen -W "${names[*]}" -- "$1")
}

# _adaptlab_query WORD: ask `command`, which has been given `words` so far, what WORD may become.
_adaptlab_query() {
    local word=$1 asked=$1 choices choice typed
    if [[ $word == *@*=* ]]; then asked=${word%%@*}=${word#*=}; fi
    if [ -n "$word" ]; then unset 'words[-1]'; fi
    choices=$(COMP_LINE="app ${words[*]} $asked" "${command[@]}" -sc query=bash 2>/dev/null) || return 0
    # Readline replaces only what follows the last of its word breaks.
    typed=${word%"${word##*[=@:]}"}
    for choice in $choices; do
        if [[ $word == *@*=* ]]; then choice=${word%%=*}=${choice#*=}; fi
        if [[ $choice == "$word"* ]]; then COMPREPLY+=("${choice#"$typed"}"); fi
    done
}

complete -o nospace -o bashdefault -o default -F _adaptlab_complete python python3 quickstart
