{{/*
The files below /run/secrets/license-gateway: one projected volume, so that all of a Secret's keys change at one moment.
*/}}

{{- define "license-gateway.secretSources" -}}
{{- $facts := include "license-gateway.facts" . | fromJson -}}
{{- $secrets := .Values.secrets -}}
{{- $credentials := $secrets.credentials -}}
{{- if .Values.sandbox.enabled -}}
{{- $name := printf "%s-sandbox-credentials" (include "license-gateway.fullname" .) }}
- secret:
    name: {{ $name }}
    items:
      - {key: client_secret, path: credentials/client_secret}
      - {key: password, path: credentials/password}
      - {key: refresh_token, path: seed/refresh_token}
{{- else }}
- secret:
    name: {{ $credentials.existingSecret }}
    items:
      - {key: {{ $credentials.clientSecretKey | quote }}, path: credentials/client_secret}
      {{- if .Values.config.credentials.username }}
      - {key: {{ $credentials.passwordKey | quote }}, path: credentials/password}
      {{- end }}
# A seed may be gone once it was used, and come again.
- secret:
    name: {{ default $credentials.existingSecret $secrets.seed.existingSecret }}
    optional: true
    items:
      - {key: {{ $secrets.seed.key | quote }}, path: seed/refresh_token}
{{- end }}
{{- if $facts.tls }}
- secret:
    name: {{ $secrets.tls.existingSecret }}
    items:
      - {key: {{ $secrets.tls.certificateKey | quote }}, path: tls/tls.crt}
      - {key: {{ $secrets.tls.privateKeyKey | quote }}, path: tls/tls.key}
{{- end }}
{{- include "license-gateway.authority" (list $secrets.clientCa "client-ca/ca.crt") }}
{{- include "license-gateway.authority" (list $secrets.centralCa "central-ca/ca.crt") }}
{{- if eq $facts.kind "redis" }}
{{- include "license-gateway.keys" (list $secrets.redis.existingSecret (dict
    "redis/password" $secrets.redis.passwordKey
    "redis/ca.crt" $secrets.redis.caKey
    "redis/client.crt" $secrets.redis.certificateKey
    "redis/client.key" $secrets.redis.privateKeyKey)) }}
{{- end }}
{{- if $facts.jwt }}
{{- if $secrets.jwt.fromServiceAccount }}
- serviceAccountToken: {path: jwt/token, expirationSeconds: 3600}
- configMap:
    name: kube-root-ca.crt
    items:
      - {key: ca.crt, path: jwt/ca.crt}
{{- else }}
{{- include "license-gateway.keys" (list $secrets.jwt.existingSecret (dict
    "jwt/jwks.json" $secrets.jwt.jwksKey
    "jwt/ca.crt" $secrets.jwt.caKey
    "jwt/token" $secrets.jwt.tokenKey)) }}
{{- end }}
{{- end }}
{{- include "license-gateway.keys" (list $secrets.otlp.existingSecret (dict "otlp/ca.crt" $secrets.otlp.caKey)) }}
{{- end }}

{{/* One PEM file of a Secret or a ConfigMap. */}}
{{- define "license-gateway.authority" -}}
{{- $from := index . 0 -}}
{{- $name := coalesce $from.existingSecret $from.existingConfigMap -}}
{{- if $name }}
- {{ ternary "secret" "configMap" (not (empty $from.existingSecret)) }}:
    name: {{ $name }}
    items:
      - {key: {{ $from.key | quote }}, path: {{ index . 1 }}}
{{- end }}
{{- end }}

{{/* Those keys of a Secret that are named. */}}
{{- define "license-gateway.keys" -}}
{{- $name := index . 0 -}}
{{- $keys := dict -}}
{{- range $path, $key := index . 1 }}{{ if $key }}{{ $_ := set $keys $path $key }}{{ end }}{{ end -}}
{{- if and $name $keys }}
- secret:
    name: {{ $name }}
    items:
      {{- range $path, $key := $keys }}
      - {key: {{ $key | quote }}, path: {{ $path }}}
      {{- end }}
{{- end }}
{{- end }}
