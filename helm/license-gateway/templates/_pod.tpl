{{/* What the profile "restricted" of the Pod Security Standards asks for, for every pod of the chart. */}}
{{- define "license-gateway.podSecurity" -}}
runAsNonRoot: true
{{- range $name := list "runAsUser" "runAsGroup" "fsGroup" }}
{{- with get $.Values.podSecurityContext $name }}
{{ $name }}: {{ int64 . }}
{{- end }}
{{- end }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "license-gateway.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* The gateway's variables. Settings are in the file; these are for telemetry and for commands run by hand. */}}
{{- define "license-gateway.env" -}}
{{- $otlp := .Values.telemetry.otlp -}}
{{- $secret := .Values.secrets.otlp -}}
- {name: LICENSE_GATEWAY_CONFIG, value: /etc/license-gateway/gateway.toml}
{{- if $otlp.endpoint }}
- {name: OTEL_EXPORTER_OTLP_ENDPOINT, value: {{ $otlp.endpoint | quote }}}
- {name: OTEL_EXPORTER_OTLP_PROTOCOL, value: {{ $otlp.protocol }}}
{{- if not (hasKey .Values.telemetry.env "OTEL_RESOURCE_ATTRIBUTES") }}
- name: POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: POD_UID
  valueFrom: {fieldRef: {fieldPath: metadata.uid}}
- name: NODE_NAME
  valueFrom: {fieldRef: {fieldPath: spec.nodeName}}
- name: OTEL_RESOURCE_ATTRIBUTES
  value: k8s.namespace.name={{ .Release.Namespace }},k8s.deployment.name={{ include "license-gateway.fullname" . }},k8s.container.name=gateway,k8s.pod.name=$(POD_NAME),k8s.pod.uid=$(POD_UID),k8s.node.name=$(NODE_NAME)
{{- end }}
{{- end }}
{{- if and $secret.existingSecret $secret.headersKey }}
- name: OTEL_EXPORTER_OTLP_HEADERS
  valueFrom: {secretKeyRef: {name: {{ $secret.existingSecret }}, key: {{ $secret.headersKey | quote }}}}
{{- end }}
{{- if and $secret.existingSecret $secret.caKey }}
- {name: OTEL_EXPORTER_OTLP_CERTIFICATE, value: /run/secrets/license-gateway/otlp/ca.crt}
{{- end }}
{{- range $name, $value := .Values.telemetry.env }}
- {name: {{ $name }}, value: {{ $value | quote }}}
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/*
Started and alive is what the health entry "" says, ready what the entry of the service says. The kubelet's gRPC probes
speak no TLS (before 1.37) and show no certificate: with TLS the admin port is asked, which says the same. Slow to kill:
the process may hold the only living pair of tokens.
*/}}
{{- define "license-gateway.probes" -}}
{{- $facts := include "license-gateway.facts" . | fromJson -}}
startupProbe:
  {{- if $facts.tls }}
  httpGet: {path: /livez, port: admin}
  {{- else }}
  grpc: {port: 50051}
  {{- end }}
  periodSeconds: 1
  timeoutSeconds: 3
  failureThreshold: 60
livenessProbe:
  {{- if $facts.tls }}
  httpGet: {path: /livez, port: admin}
  {{- else }}
  grpc: {port: 50051}
  {{- end }}
  periodSeconds: 10
  timeoutSeconds: 3
  failureThreshold: 6
readinessProbe:
  {{- if $facts.tls }}
  httpGet: {path: /readyz, port: admin}
  {{- else }}
  grpc: {port: 50051, service: central.licensing.v1.LicensingService}
  {{- end }}
  periodSeconds: 5
  timeoutSeconds: 3
  failureThreshold: 2
{{- end }}
