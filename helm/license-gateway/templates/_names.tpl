{{/* What things are called, and the labels they bear. */}}

{{- define "license-gateway.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" -}}
{{- end }}

{{/* The Deployment and its Service; others add a word. Short enough for `-sandbox-credentials` within 63. */}}
{{- define "license-gateway.fullname" -}}
{{- $name := include "license-gateway.name" . -}}
{{- $both := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- default $both .Values.fullnameOverride | trunc 43 | trimSuffix "-" -}}
{{- end }}

{{- define "license-gateway.serviceAccountName" -}}
{{- default (ternary (include "license-gateway.fullname" .) "default" .Values.serviceAccount.create) .Values.serviceAccount.name -}}
{{- end }}

{{/* Never changes while a release lives: a Deployment's selector cannot. Call with the context and the component. */}}
{{- define "license-gateway.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "license-gateway.name" $root }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- define "license-gateway.labels" -}}
{{- $root := index . 0 -}}
{{ include "license-gateway.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- with $root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* name:tag, or name@digest. Call with an image and the tag that holds where it has none. */}}
{{- define "license-gateway.image" -}}
{{- $image := index . 0 -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ default (index . 1) $image.tag }}
{{- end -}}
{{- end }}

{{/* The port of a URL. */}}
{{- define "license-gateway.port" -}}
{{- $url := urlParse . -}}
{{- $given := regexFind ":[0-9]+$" $url.host | trimPrefix ":" -}}
{{- $usual := dict "http" "80" "https" "443" "redis" "6379" "rediss" "6379" "valkey" "6379" "valkeys" "6379" -}}
{{- default (default "443" (get $usual $url.scheme)) $given -}}
{{- end }}

{{/* A length of time in milliseconds: `1m 30s` is 90000. */}}
{{- define "license-gateway.milliseconds" -}}
{{- $of := dict "ms" 1 "s" 1000 "m" 60000 "h" 3600000 -}}
{{- $total := 0 -}}
{{- range regexFindAll "[0-9]+(ms|s|m|h)" . -1 -}}
{{- $total = add $total (mul (regexFind "^[0-9]+" . | int64) (get $of (regexFind "[a-z]+$" .))) -}}
{{- end -}}
{{- $total -}}
{{- end }}
