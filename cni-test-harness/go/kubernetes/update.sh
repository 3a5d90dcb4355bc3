#!/usr/bin/env bash
# Writes go.mod and go.sum for a release of Kubernetes: ./update.sh v1.34.4
#
# k8s.io/kubernetes requires its staging modules at v0.0.0 and replaces them by folders of its own
# tree; a module that imports it has to name their published versions instead (v1.34.4 is v0.34.4).
# Modules with versions of their own (k8s.io/utils, kube-openapi, …) are left alone.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
release=${1:?usage: ./update.sh v1.34.4}
published=v0.${release#v1.}

of_kubernetes=$(cd / && go mod download -json "k8s.io/kubernetes@$release" | sed -n 's/^\t"GoMod": "\(.*\)",$/\1/p')
[[ -n $of_kubernetes ]] || { echo "update.sh: no module k8s.io/kubernetes@$release" >&2; exit 1; }

{
    printf 'module twill.test/kubernetes\n\n'
    sed -n '/^go [0-9]/p; /^godebug /p' "$of_kubernetes"
    printf '\nrequire k8s.io/kubernetes %s\n\nreplace (\n' "$release"
    sed -n "s#^\t\(k8s\.io/[a-z0-9.-]*\) v0\.0\.0\$#\t\1 => \1 $published#p" "$of_kubernetes"
    printf ')\n'
} >go.mod
rm -f go.sum
go mod tidy
