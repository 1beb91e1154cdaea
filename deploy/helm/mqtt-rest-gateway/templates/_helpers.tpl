{{- define "gateway.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "gateway.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: gateway
{{- end -}}

{{- define "gateway.labels" -}}
{{ include "gateway.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end -}}

{{/* A pod is made anew when a file that it reads at its start has changed. */}}
{{- define "gateway.annotations" -}}
{{- $files := printf "%s%s" .Values.config (include "mosquitto.files" .) -}}
checksum/files: {{ $files | sha256sum | trunc 16 | quote }}
{{- with .Values.podAnnotations }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "gateway.clientId" -}}
{{- if .draining -}}
{{- .Values.drain.clientId -}}
{{- else if eq .Values.variant "share-group" -}}
{{- .Values.broker.clientId }}-$(POD_INDEX)
{{- else -}}
{{- .Values.broker.clientId -}}
{{- end -}}
{{- end -}}

{{- define "gateway.environment" -}}
{{- if eq .Values.variant "share-group" -}}
- name: POD_INDEX
  {{- if or .draining .checking }}
  value: {{ regexFind "[0-9]+$" .Values.drain.clientId | default "0" | quote }}
  {{- else }}
  valueFrom:
    fieldRef:
      fieldPath: metadata.labels['apps.kubernetes.io/pod-index']
  {{- end }}
- name: GATEWAY_BROKER_SHARE_GROUP
  value: {{ .Values.shareGroup.name | quote }}
{{ end -}}
- name: GATEWAY_BROKER_URL
  value: {{ ternary "mqtt://127.0.0.1:1883" .Values.broker.url (eq .Values.variant "sidecar") | quote }}
- name: GATEWAY_BROKER_CLIENT_ID
  value: {{ include "gateway.clientId" . | quote }}
{{- if .Values.broker.passwordSecret }}
- name: GATEWAY_BROKER_USERNAME
  value: {{ .Values.broker.username | default (include "gateway.clientId" .) | quote }}
- name: GATEWAY_BROKER_PASSWORD_FILE
  value: /etc/mqtt-rest-gateway/password/{{ .Values.broker.passwordKey }}
{{- end }}
{{- if .Values.broker.tlsSecret }}
- name: GATEWAY_BROKER_CA_FILE
  value: /etc/mqtt-rest-gateway/tls/ca.crt
{{- if .Values.broker.clientCertificate }}
- name: GATEWAY_BROKER_CERT_FILE
  value: /etc/mqtt-rest-gateway/tls/tls.crt
- name: GATEWAY_BROKER_KEY_FILE
  value: /etc/mqtt-rest-gateway/tls/tls.key
{{- end }}
{{- end }}
{{- with .Values.upstream.url }}
- name: GATEWAY_UPSTREAM_URL
  value: {{ . | quote }}
{{- end }}
- name: GATEWAY_ADMIN_LISTEN
  value: {{ .Values.environment.GATEWAY_ADMIN_LISTEN | default "0.0.0.0:9180" | quote }}
{{- if .Values.config }}
- name: GATEWAY_CONFIG
  value: /etc/mqtt-rest-gateway/config/config.toml
{{- end }}
{{- with .Values.traces }}
{{- if .endpoint }}
{{- if contains "$(NODE_IP)" .endpoint }}
- name: NODE_IP
  valueFrom:
    fieldRef:
      fieldPath: status.hostIP
{{- end }}
- name: GATEWAY_TRACES_ENDPOINT
  value: {{ .endpoint | quote }}
- name: GATEWAY_TRACES_SAMPLE
  value: {{ .sample | quote }}
{{- with .headersSecret }}
- name: OTEL_EXPORTER_OTLP_HEADERS
  valueFrom:
    secretKeyRef: { name: {{ . }}, key: headers }
{{- end }}
{{- end }}
{{- end }}
{{- range $name, $value := omit .Values.environment "GATEWAY_ADMIN_LISTEN" }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- end -}}

{{/* What every container of the chart may do: nothing. */}}
{{- define "gateway.confined" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- define "gateway.container" -}}
- name: gateway
  image: {{ .Values.image.repository }}{{ with .Values.image.digest }}@{{ . }}{{ else }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ end }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  env:
    {{- include "gateway.environment" . | nindent 4 }}
  {{- if or .Values.broker.passwordSecret .Values.broker.tlsSecret .Values.config .Values.extraVolumeMounts }}
  volumeMounts:
    {{- if .Values.broker.passwordSecret }}
    - { name: password, mountPath: /etc/mqtt-rest-gateway/password, readOnly: true }
    {{- end }}
    {{- if .Values.broker.tlsSecret }}
    - { name: tls, mountPath: /etc/mqtt-rest-gateway/tls, readOnly: true }
    {{- end }}
    {{- if .Values.config }}
    - { name: config, mountPath: /etc/mqtt-rest-gateway/config, readOnly: true }
    {{- end }}
    {{- with .Values.extraVolumeMounts }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- end }}
  resources:
    {{- toYaml .Values.resources | nindent 4 }}
  securityContext:
    {{- include "gateway.confined" . | nindent 4 }}
{{- end -}}

{{- define "gateway.volumes" -}}
{{- if .Values.broker.passwordSecret }}
- name: password
  secret: { secretName: {{ .Values.broker.passwordSecret }}, defaultMode: 0440 }
{{- end }}
{{- if .Values.broker.tlsSecret }}
- name: tls
  secret: { secretName: {{ .Values.broker.tlsSecret }}, defaultMode: 0440 }
{{- end }}
{{- if .Values.config }}
- name: config
  configMap: { name: {{ include "gateway.fullname" . }}{{ if .checking }}-check{{ end }} }
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Ports and probes of a gateway that runs; a draining one has none. */}}
{{- define "gateway.served" -}}
ports:
  - { name: admin, containerPort: 9180 }
startupProbe:
  httpGet: { path: /livez, port: admin }
  periodSeconds: 1
  failureThreshold: 30
# It knows nothing of broker and API: their outage restarts nothing.
livenessProbe:
  httpGet: { path: /livez, port: admin }
  periodSeconds: 10
{{- end -}}

{{- define "gateway.readiness" -}}
# Nothing is sent to this pod: readiness is for rollouts, and for people.
readinessProbe:
  httpGet: { path: /readyz, port: admin }
  periodSeconds: 5
{{- end -}}

{{/* The pod's own fields, but for containers and volumes. 1883 is Mosquitto's user in its image. */}}
{{- define "gateway.pod" -}}
{{- $user := ternary 1883 65532 (eq .Values.variant "sidecar") -}}
# Longer than [shutdown] grace (25s), so that a stop is clean; a broker in the pod stops after the gateway.
terminationGracePeriodSeconds: 40
# A Service called `gateway` would put GATEWAY_PORT and the like into the environment.
enableServiceLinks: false
automountServiceAccountToken: false
securityContext:
  runAsNonRoot: true
  runAsUser: {{ $user }}
  runAsGroup: {{ $user }}
  fsGroup: {{ $user }}
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: { type: RuntimeDefault }
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.podSpec }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "mosquitto.conf" -}}
{{- $text := .Values.mosquitto.config | default (.Files.Get "files/mosquitto.conf") -}}
{{- if .Values.mosquitto.tlsSecret -}}
{{- regexReplaceAll "(?m)^listener 1883$" $text "listener 1883 127.0.0.1" | trimSuffix "\n" }}

listener 8883
use_username_as_clientid true
certfile /mosquitto/tls/tls.crt
keyfile /mosquitto/tls/tls.key
{{ else -}}
{{- $text -}}
{{- end -}}
{{- end -}}

{{- define "mosquitto.files" -}}
{{- if eq .Values.variant "sidecar" -}}
{{ include "mosquitto.conf" . }}{{ .Values.mosquitto.acl | default (.Files.Get "files/mosquitto.acl") }}
{{- end -}}
{{- end -}}

{{- define "mosquitto.port" -}}
{{- ternary 8883 1883 (not (empty .Values.mosquitto.tlsSecret)) -}}
{{- end -}}
